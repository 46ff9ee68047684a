"""The compiled kernels, loaded, and the structures that they share."""

import ctypes
import functools
import logging

import torch
from torch import Tensor

from model.scan.build_cache import BuildError
from model.scan.constant import constant_under_compile
from model.scan.native.build import build_library

Pointer = ctypes.c_void_p
Int = ctypes.c_int64
_log = logging.getLogger(__name__)


class Tensor3(ctypes.Structure):
    """A float32 (B, D, L) tensor of any strides; all zero when absent."""

    _fields_ = [("data", Pointer), ("batch", Int), ("channel", Int), ("token", Int)]

    @classmethod
    def of(cls, tensor: Tensor) -> "Tensor3":
        return cls(tensor.data_ptr(), *tensor.stride())


@functools.cache
def library() -> ctypes.CDLL:
    """The kernels. torch is imported first, so that both share one OpenMP runtime."""
    loaded = ctypes.CDLL(str(build_library()))
    for name in ("scan_chunk", "scan_width", "scan_group", "norm_rows"):
        getattr(loaded, name).restype = Int
    return loaded


@constant_under_compile
def is_available() -> bool:
    """Whether the kernels exist or can be built; warns once when not."""
    return builds()


@functools.cache
def builds() -> bool:
    """``is_available`` before torch.compile treats it as a constant."""
    try:
        build_library()
    except BuildError as error:
        _log.warning("falling back to PyTorch kernels, which are many times slower: %s", error)
        return False
    return True


class Arguments:
    """Keeps alive what the pointers of a call point to."""

    def __init__(self) -> None:
        self._alive: list[Tensor] = []

    def tensor3(self, tensor: Tensor) -> Tensor3:
        """A (B, D, L) tensor as float32, copied only when it is not."""
        self._alive.append(tensor.to(torch.float32))
        return Tensor3.of(self._alive[-1])

    def dense(self, tensor: Tensor | None) -> int | None:
        """The address of a contiguous float32 version of ``tensor``; None when absent."""
        if tensor is None:
            return None
        self._alive.append(tensor.to(torch.float32).contiguous())
        return self._alive[-1].data_ptr()
