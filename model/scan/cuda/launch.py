"""Loads compiled kernels on a GPU and launches them on torch's current stream.

Every kernel takes one structure by value, whose layout a ``ctypes.Structure`` repeats. The driver
is called through ctypes: a few functions of a library that torch has loaded already.
"""

import ctypes
import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from model.scan.cuda.compile import Macros, build_cubin
from model.scan.problem import ScanError

Pointer = ctypes.c_void_p
Int = ctypes.c_int
Long = ctypes.c_longlong
Unsigned = ctypes.c_uint
_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_LARGE_SHARED = 48 * 1024  # a block gets more than this only on request


class Strided(ctypes.Structure):
    """A (B, D, L) tensor of any strides, in bytes; all zero when absent."""

    _fields_ = [("data", Pointer), ("batch", Long), ("channel", Unsigned), ("token", Unsigned)]

    @classmethod
    def of(cls, tensor: Tensor | None) -> "Strided":
        if tensor is None:
            return cls()
        size = tensor.element_size()
        return cls(tensor.data_ptr(), *(size * stride for stride in tensor.stride()))


_OneParameter = Pointer * 1


class LoadedKernels(Protocol):
    """Compiled kernels that can be launched. Tests have an implementation for the CPU."""

    def launch(
        self, name: str, blocks: int, threads: int, shared: int, parameters: ctypes.Structure
    ) -> None:
        """Queue ``blocks`` blocks of kernel ``name`` with ``shared`` bytes of shared memory."""
        ...


def load(source: str, macros: Macros, device: torch.device) -> LoadedKernels:
    """The kernels of ``source`` for ``device``, compiled when they are not in the cache."""
    return _loaded(source, tuple(sorted(macros.items())), device.index or 0)


def architecture(index: int) -> str:
    """The architecture sm_XY of a CUDA device."""
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


class Card(NamedTuple):
    """What decides how a problem is cut into blocks; the defaults are those of an H100."""

    multiprocessors: int = 132
    shared: int = 228 * 1024
    """Bytes of shared memory of each multiprocessor."""


@functools.cache
def card(device: torch.device) -> Card:
    """The properties of ``device``; those of an H100 for a CPU, on which tests run kernels."""
    if device.type != "cuda":
        return Card()
    properties = torch.cuda.get_device_properties(device)
    return Card(properties.multi_processor_count, properties.shared_memory_per_multiprocessor)


@functools.cache
def _loaded(source: str, macros: Sequence[tuple[str, str | int]], index: int) -> "_OnDevice":
    return _OnDevice(build_cubin(source, dict(macros), architecture(index)).read_bytes(), index)


class _OnDevice:
    """A module in the context of one device."""

    def __init__(self, code: bytes, index: int) -> None:
        self._index, self._code = index, code
        self._module = Pointer()
        self._functions: dict[str, tuple[ctypes.c_void_p, int]] = {}
        with torch.cuda.device(index):
            torch.cuda.current_stream().synchronize()  # torch makes its context here
            _check(_driver().cuModuleLoadData(ctypes.byref(self._module), code), "load kernels")

    def launch(
        self, name: str, blocks: int, threads: int, shared: int, parameters: ctypes.Structure
    ) -> None:
        function = self._function(name, shared)
        _make_context_current(self._index)
        # What torch.cuda.current_stream gives, without an object that takes longer than the launch.
        stream = Pointer(torch._C._cuda_getCurrentRawStream(self._index))
        arguments = _OneParameter(ctypes.addressof(parameters))
        status = _driver().cuLaunchKernel(
            function, blocks, 1, 1, threads, 1, 1, shared, stream, arguments, None
        )
        if status:
            _check(status, f"launch {name} of {blocks} blocks, {threads} threads, {shared} bytes")

    def _function(self, name: str, shared: int) -> Pointer:
        function, allowed = self._functions.get(name) or (Pointer(), _LARGE_SHARED)
        if function and shared <= allowed:
            return function
        if not function:
            status = _driver().cuModuleGetFunction(
                ctypes.byref(function), self._module, name.encode()
            )
            _check(status, f"find kernel {name}")
        if shared > allowed:
            status = _driver().cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED, shared)
            _check(status, f"give {name} {shared} bytes of shared memory")
            allowed = shared
        self._functions[name] = function, allowed
        return function


def _make_context_current(index: int) -> None:
    """Give the thread torch's context: a thread of autograd may have none yet.

    That happens when all its tensors come from torch's cache.
    """
    context, device = Pointer(), Int()
    _check(_driver().cuCtxGetCurrent(ctypes.byref(context)), "find its context")
    if context:
        return
    _check(_driver().cuDeviceGet(ctypes.byref(device), index), "find the device")
    status = _driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
    _check(status, "use torch's context")
    _check(_driver().cuCtxSetCurrent(context), "use torch's context")


@functools.cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise ScanError(f"scan: the CUDA driver cannot be loaded: {error}") from error


def _check(status: int, what: str) -> None:
    if status:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        reason = (text.value or b"unknown error").decode()
        raise ScanError(f"scan: CUDA could not {what}: {reason} ({status})")
