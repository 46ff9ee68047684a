"""The fused C++ scan for CPUs (native/scan.cpp), called through ctypes."""

import ctypes
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from model.scan.native.build import build_library
from model.scan.problem import Direction, Scan, token_major

_Float = ctypes.c_void_p
_Int = ctypes.c_int64


class _Tensor3(ctypes.Structure):
    _fields_ = [("data", _Float), ("batch", _Int), ("channel", _Int), ("token", _Int)]


class _Pass(ctypes.Structure):
    _fields_ = [
        *((name, _Tensor3) for name in ("u", "delta")),
        *((name, _Float) for name in ("A", "B", "C", "D", "bias", "states")),
        *((name, _Int) for name in ("reverse", "masked")),
        *((name, _Tensor3) for name in ("du", "ddelta")),
        *((name, _Float) for name in ("dA", "dB", "dC", "dD", "dbias")),
    ]


class _Job(ctypes.Structure):
    _fields_ = [
        *((name, _Int) for name in ("batch", "channels", "length", "size")),
        *((name, _Int) for name in ("softplus", "first_token", "num_passes", "num_threads")),
        ("passes", _Pass * 2),
        *((name, _Tensor3) for name in ("z", "out", "pre_gate", "dout", "dz")),
    ]


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernels. torch is already imported, so both share one OpenMP runtime."""
    loaded = ctypes.CDLL(str(build_library()))
    loaded.scan_chunk.restype = loaded.scan_width.restype = loaded.scan_group.restype = _Int
    return loaded


def supports(scan: Scan) -> bool:
    """Whether the kernels can run ``scan``: anything but float64, on the CPU."""
    return scan.u.device.type == "cpu" and scan.state_dtype == torch.float32


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
            call.job.pre_gate = _tensor3(pre_gate)
    call.job.out = _tensor3(out)
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
        call.job.pre_gate, call.job.dz = _tensor3(pre_gate), _tensor3(grads["z"])
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
                setattr(pass_, field, _tensor3(grads[owner]))
                continue
            if owner not in grads:
                shape = (batch, channels)
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
        self._alive: list[Tensor] = []
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

    def tensor3(self, tensor: Tensor) -> _Tensor3:
        """A (B, D, L) tensor of any strides, as float32."""
        self._alive.append(tensor.to(torch.float32))
        return _tensor3(self._alive[-1])

    def _fill(self, pass_: _Pass, direction: Direction) -> None:
        pass_.u, pass_.delta = self.tensor3(direction.u), self.tensor3(direction.delta)
        pass_.A = self._padded(direction.A)
        pass_.B = self._padded(direction.B.transpose(1, 2))
        pass_.C = self._padded(direction.C.transpose(1, 2))
        pass_.D, pass_.bias = self._dense(direction.D), self._dense(direction.delta_bias)
        pass_.reverse, pass_.masked = direction.reverse, direction.mask_current

    def _padded(self, tensor: Tensor) -> int | None:
        return self._dense(F.pad(tensor, (0, self.job.size - tensor.shape[-1])))

    def _dense(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._alive.append(tensor.to(torch.float32).contiguous())
        return self._alive[-1].data_ptr()


def _tensor3(tensor: Tensor) -> _Tensor3:
    return _Tensor3(tensor.data_ptr(), *tensor.stride())
