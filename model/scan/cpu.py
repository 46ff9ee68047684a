"""The fused C++ scan for CPUs (native/scan.cpp), called through ctypes."""

import ctypes
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from model.scan.native.library import Arguments, Int, Pointer, Tensor3, library
from model.scan.problem import Direction, Scan, token_major


class _Pass(ctypes.Structure):
    _fields_ = [
        *((name, Tensor3) for name in ("u", "delta")),
        *((name, Pointer) for name in ("A", "B", "C", "D", "bias", "states")),
        *((name, Int) for name in ("reverse", "masked")),
        *((name, Tensor3) for name in ("du", "ddelta")),
        *((name, Pointer) for name in ("dA", "dB", "dC", "dD", "dbias")),
    ]


class _Job(ctypes.Structure):
    _fields_ = [
        *((name, Int) for name in ("batch", "channels", "length", "size")),
        *((name, Int) for name in ("softplus", "first_token", "num_passes", "num_threads")),
        ("passes", _Pass * 2),
        *((name, Tensor3) for name in ("z", "out", "pre_gate", "dout", "dz")),
    ]


def states_shape(passes: int, batch: int, channels: int, length: int, size: int) -> Sequence[int]:
    """Shape of the kept states: a block of channels of one sample is contiguous."""
    tiling = _tiling()
    blocks = (channels + tiling.width - 1) // tiling.width
    chunks = (length + tiling.chunk - 1) // tiling.chunk
    return passes, batch, blocks, chunks, tiling.padded(size) * tiling.width


class _Tiling(NamedTuple):
    chunk: int  # tokens between kept states
    width: int  # channels of one task
    group: int  # the state size is padded with zeros to a multiple of this

    def padded(self, size: int) -> int:
        return (size + self.group - 1) // self.group * self.group


@functools.cache
def _tiling() -> _Tiling:
    loaded = library()
    return _Tiling(loaded.scan_chunk(), loaded.scan_width(), loaded.scan_group())


def forward(scan: Scan, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """See ``op.Kernels``."""
    batch, channels, length, size = scan.shape
    call = _Call(scan)
    out = token_major(batch, channels, length, scan.u, torch.float32)
    pre_gate, states = (scan.u.new_empty(0, dtype=torch.float32) for _ in range(2))
    if keep:
        shape = states_shape(call.job.num_passes, batch, channels, length, size)
        states = scan.u.new_empty(shape, dtype=torch.float32)
        call.keep(states)
        if scan.z is not None:
            pre_gate = token_major(batch, channels, length, scan.u, torch.float32)
            call.job.pre_gate = Tensor3.of(pre_gate)
    call.job.out = Tensor3.of(out)
    library().scan_forward(ctypes.byref(call.job))
    return out.to(scan.u.dtype), pre_gate, states


def backward(scan: Scan, dout: Tensor, pre_gate: Tensor, states: Tensor) -> dict[str, Tensor]:
    """See ``op.Kernels``. Sums over channels and samples have a fixed order: deterministic."""
    batch, channels, length, size = scan.shape
    call = _Call(scan)
    call.keep(states)
    call.job.dout = call.tensor3(dout)
    grads: dict[str, Tensor] = {}
    if scan.z is not None:
        grads["z"] = token_major(batch, channels, length, scan.u, torch.float32)
        call.job.pre_gate, call.job.dz = Tensor3.of(pre_gate), Tensor3.of(grads["z"])
    blocks, padded = states.shape[2], call.job.size
    for pass_, direction in zip(call.job.passes, scan.directions(), strict=False):
        for name in ("u", "delta", "A", "B", "C", "D", "delta_bias"):
            tensor = getattr(direction, name)
            if tensor is None:
                continue
            owner = scan.own(name, direction.suffix)
            field = f"d{name.removeprefix('delta_')}"
            if name in ("u", "delta"):
                if owner not in grads:
                    grads[owner] = token_major(batch, channels, length, scan.u, torch.float32)
                setattr(pass_, field, Tensor3.of(grads[owner]))
                continue
            if owner not in grads:
                shape: tuple[int, ...] = (batch, channels)
                if name == "A":
                    shape = (batch, channels, padded)
                elif name in ("B", "C"):
                    shape = (blocks, batch, length, padded)
                grads[owner] = scan.u.new_empty(shape, dtype=torch.float32)
            setattr(pass_, field, grads[owner].data_ptr())
    library().scan_backward(ctypes.byref(call.job))
    for owner, partial in grads.items():
        match owner.removesuffix("_b"):
            case "A":
                grads[owner] = partial.sum(0)[:, :size]
            case "B" | "C":
                grads[owner] = partial.sum(0)[..., :size].transpose(1, 2)
            case "D" | "delta_bias":
                grads[owner] = partial.sum(0)
    return grads


class _Call:
    """A job for the library, and what it points to, kept alive."""

    def __init__(self, scan: Scan) -> None:
        self._arguments = Arguments()
        self.tensor3 = self._arguments.tensor3
        self.job = _Job()
        self.job.batch, self.job.channels, self.job.length, size = scan.shape
        self.job.size = _tiling().padded(size)
        self.job.softplus, self.job.first_token = scan.delta_softplus, scan.first_token
        self.job.num_threads = torch.get_num_threads()
        directions = scan.directions()
        self.job.num_passes = len(directions)
        for pass_, direction in zip(self.job.passes, directions, strict=False):
            self._fill(pass_, direction)
        if scan.z is not None:
            self.job.z = self.tensor3(scan.z)

    def keep(self, states: Tensor) -> None:
        """Let each pass keep its states in (or take them from) ``states``."""
        for pass_, kept in zip(self.job.passes, states, strict=False):
            pass_.states = kept.data_ptr()

    def _fill(self, pass_: _Pass, direction: Direction) -> None:
        dense = self._arguments.dense
        pass_.u, pass_.delta = self.tensor3(direction.u), self.tensor3(direction.delta)
        pass_.A = dense(self._padded(direction.A))
        pass_.B = dense(self._padded(direction.B.transpose(1, 2)))
        pass_.C = dense(self._padded(direction.C.transpose(1, 2)))
        pass_.D, pass_.bias = dense(direction.D), dense(direction.delta_bias)
        pass_.reverse, pass_.masked = direction.reverse, direction.mask_current

    def _padded(self, tensor: Tensor) -> Tensor:
        missing = self.job.size - tensor.shape[-1]
        return F.pad(tensor, (0, missing)) if missing else tensor
