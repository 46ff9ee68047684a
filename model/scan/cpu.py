"""The fused C++ scan for CPUs (native/scan.cpp), called through ctypes."""

import ctypes
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from model.scan.native.library import Arguments, Int, Pointer, Tensor3, library
from model.scan.problem import Direction, Forward, Scan, placed, token_major


class _Pass(ctypes.Structure):
    _fields_ = [
        *((name, Tensor3) for name in ("u", "delta")),
        *((name, Pointer) for name in ("A", "B", "C", "D", "bias", "start", "states", "last")),
        *((name, Int) for name in ("constant_B", "constant_C", "reverse", "masked")),
        *((name, Tensor3) for name in ("du", "ddelta")),
        *((name, Pointer) for name in ("dA", "dB", "dC", "dD", "dbias", "dstart", "dlast")),
    ]


class _Job(ctypes.Structure):
    _fields_ = [
        *((name, Int) for name in ("batch", "channels", "length", "size", "groups")),
        *((name, Int) for name in ("softplus", "first_token", "num_passes", "num_threads")),
        ("passes", _Pass * 2),
        *((name, Tensor3) for name in ("z", "out", "pre_gate", "dout", "dz")),
    ]


def states_shape(scan: Scan) -> Sequence[int]:
    """Shape of the kept states: a block of channels of one sample is contiguous."""
    batch, _, length, size = scan.shape
    tiling = _tiling()
    chunks = (length + tiling.chunk - 1) // tiling.chunk
    blocks = scan.groups * tiling.blocks(scan)
    return len(scan.directions()), batch, blocks, chunks, tiling.padded(size) * tiling.width


class _Tiling(NamedTuple):
    chunk: int  # tokens between kept states
    width: int  # channels of one task
    group: int  # the state size is padded with zeros to a multiple of this

    def blocks(self, scan: Scan) -> int:
        """Blocks of channels in a group."""
        return (scan.shape[1] // scan.groups + self.width - 1) // self.width

    def padded(self, size: int) -> int:
        return (size + self.group - 1) // self.group * self.group


@functools.cache
def _tiling() -> _Tiling:
    loaded = library()
    return _Tiling(loaded.scan_chunk(), loaded.scan_width(), loaded.scan_group())


def forward(scan: Scan, keep: bool) -> Forward:
    """See ``op.ScanKernels``."""
    batch, channels, length, size = scan.shape
    call = _Call(scan)
    out = token_major(batch, channels, length, scan.u, torch.float32)
    pre_gate, states, last = (scan.u.new_empty(0, dtype=torch.float32) for _ in range(3))
    if keep:
        states = scan.u.new_empty(states_shape(scan), dtype=torch.float32)
        call.keep(states)
        if scan.z is not None:
            pre_gate = token_major(batch, channels, length, scan.u, torch.float32)
            call.job.pre_gate = Tensor3.of(pre_gate)
    if scan.return_last_state:
        last = scan.u.new_empty((batch, channels, call.job.size), dtype=torch.float32)
        call.job.passes[0].last = last.data_ptr()
        last = last[..., :size]
    call.job.out = Tensor3.of(out)
    library().scan_forward(ctypes.byref(call.job))
    return Forward(out.to(scan.u.dtype), pre_gate, states, last.contiguous())


def backward(
    scan: Scan,
    dout: Tensor,
    dlast_state: Tensor | None,
    pre_gate: Tensor,
    states: Tensor,
    into: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """See ``op.ScanKernels``. Sums over channels and samples have a fixed order: deterministic."""
    batch, channels, length, size = scan.shape
    call = _Call(scan)
    call.keep(states)
    call.job.dout = call.tensor3(dout)
    grads: dict[str, Tensor] = {}

    def new(*shape: int) -> Tensor:
        return scan.u.new_empty(shape, dtype=torch.float32)

    if scan.z is not None:
        dz = (into or {}).get("z")
        if dz is None or dz.dtype != torch.float32 or dz.stride(1) != 1:
            dz = token_major(batch, channels, length, scan.u, torch.float32)
        grads["z"] = dz
        call.job.pre_gate, call.job.dz = Tensor3.of(pre_gate), Tensor3.of(grads["z"])
    per_state = (batch, channels, call.job.size)
    call.job.passes[0].dlast = call.states(dlast_state)
    if scan.initial_state is not None:
        grads["initial_state"] = new(*per_state)
        call.job.passes[0].dstart = grads["initial_state"].data_ptr()
    per_token = (_tiling().blocks(scan), batch, length, scan.groups, call.job.size)
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
                shape = (batch, channels) if tensor.dim() == 1 else per_state
                grads[owner] = new(*(per_token if tensor.dim() == 4 else shape))
            setattr(pass_, field, grads[owner].data_ptr())
    library().scan_backward(ctypes.byref(call.job))
    summed = {owner: _summed(owner, partial, size) for owner, partial in grads.items()}
    return placed(summed, into)


def _summed(owner: str, partial: Tensor, size: int) -> Tensor:
    """The gradient of an argument, from the partial sums that the kernel wrote."""
    match owner.removesuffix("_b"):
        case "A" | "B" | "C":
            grad = partial.sum(0)[..., :size]
            return grad.movedim(1, -1) if grad.dim() == 4 else grad
        case "D" | "delta_bias":
            return partial.sum(0)
        case "initial_state":
            return partial[..., :size]
        case _:
            return partial


class _Call:
    """A job for the library; keeps alive the tensors that the job points to."""

    def __init__(self, scan: Scan) -> None:
        self._arguments = Arguments()
        self.tensor3 = self._arguments.tensor3
        self.job = _Job()
        self.job.batch, self.job.channels, self.job.length, size = scan.shape
        self.job.groups = scan.groups
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
        pass_.constant_B, pass_.constant_C = direction.B.dim() == 2, direction.C.dim() == 2
        pass_.A, pass_.start = self.states(direction.A), self.states(direction.initial_state)
        pass_.B, pass_.C = (
            self.states(tensor if tensor.dim() == 2 else tensor.movedim(-1, 1))
            for tensor in (direction.B, direction.C)
        )
        pass_.D, pass_.bias = dense(direction.D), dense(direction.delta_bias)
        pass_.reverse, pass_.masked = direction.reverse, direction.mask_current

    def states(self, tensor: Tensor | None) -> int | None:
        """The address of a dense float32 (..., N), N padded; None when absent."""
        if tensor is None:
            return None
        missing = self.job.size - tensor.shape[-1]
        return self._arguments.dense(F.pad(tensor, (0, missing)) if missing else tensor)
