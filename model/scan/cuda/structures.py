"""The parameters of the scan's kernels, as scan.cuh and scan_reduce.cuh declare them."""

import ctypes

from torch import Tensor

from model.scan.cuda.launch import Int, Long, Pointer, Strided, Unsigned

MAX_SUMS = 10


class Rows(ctypes.Structure):
    """A (B, groups, N, L) tensor of any strides, in bytes."""

    _fields_ = [
        ("data", Pointer),
        *((name, Long) for name in ("batch", "group")),
        *((name, Unsigned) for name in ("state", "token")),
    ]

    @classmethod
    def of(cls, tensor: Tensor) -> "Rows":
        size = tensor.element_size()
        return cls(tensor.data_ptr(), *(size * stride for stride in tensor.stride()))


class Direction(ctypes.Structure):
    """What a direction reads and writes; `Direction` in scan.cuh."""

    _fields_ = [
        *((name, Strided) for name in ("u", "delta")),
        *((name, Rows) for name in ("B", "C")),
        *((name, Pointer) for name in ("A", "D", "delta_bias")),
        *((name, Strided) for name in ("du", "ddelta")),
        *((name, Int) for name in ("reverse", "masked")),
    ]


class Job(ctypes.Structure):
    """A scan; `Scan` in scan.cuh."""

    _fields_ = [
        ("direction", Direction * 2),
        *((name, Strided) for name in ("z", "dout", "out", "dz")),
        *((name, Pointer) for name in ("y", "du", "ddelta", "kept", "last")),
        *((name, Pointer) for name in ("initial_state", "dlast", "dstart")),
        *((name, Pointer) for name in ("ends", "steps", "dBC", "dA", "dD")),
        *((name, Int) for name in ("batch", "channels", "length", "states", "groups")),
        *((name, Int) for name in ("directions", "segments", "segment_chunks")),
        *((name, Int) for name in ("softplus", "first_token", "keep_total")),
        *((name, Int) for name in ("shared_u", "shared_delta")),
    ]


class Axis(ctypes.Structure):
    """An axis of a tensor of sums."""

    _fields_ = [(name, Long) for name in ("size", "source", "target")]


class Sum(ctypes.Structure):
    """A tensor, each of whose elements is a sum over two axes; `Job` in scan_reduce.cuh."""

    _fields_ = [
        *((name, Pointer) for name in ("source", "target")),
        ("axes", Axis * 4),
        *((name, Long) for name in ("outer", "outer_stride", "inner", "inner_stride")),
        *((name, Int) for name in ("half", "first_block")),
    ]


class Reduction(ctypes.Structure):
    """All sums of a backward pass."""

    _fields_ = [("sums", Sum * MAX_SUMS), ("count", Int)]


def word(name: str, direction: int | None = None) -> int:
    """Which of the 8-byte words of a ``Job`` is the pointer that a field is or starts with."""
    if direction is None:
        return int(getattr(Job, name).offset) // 8
    place = Job.direction.offset + direction * ctypes.sizeof(Direction)
    return int(place + getattr(Direction, name).offset) // 8


def sum_word(name: str, index: int) -> int:
    """The same for a field of the ``Sum`` ``index`` of a ``Reduction``."""
    place = Reduction.sums.offset + index * ctypes.sizeof(Sum)
    return int(place + getattr(Sum, name).offset) // 8
