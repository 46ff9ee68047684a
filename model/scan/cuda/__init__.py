"""CUDA C++ kernels, compiled at run time; nothing is compiled before a backend asks for it."""

import functools

import torch

from model.scan.constant import constant_under_compile

_OLDEST = (8, 0)  # the kernels' bf16 conversions need sm_80


@constant_under_compile
def is_available(device: torch.device) -> bool:
    """Whether the kernels can be compiled for ``device`` and run on it."""
    return why_unavailable(device) is None


def why_unavailable(device: str | torch.device) -> str | None:
    """What is missing; None when nothing is. "cuda" stands for the current device."""
    device = torch.device(device)
    if device.type != "cuda":
        return "it needs tensors on an NVIDIA GPU"
    return _why_unavailable(device.index if device.index is not None else _current())


@functools.cache
def _why_unavailable(index: int | None) -> str | None:
    if index is None:
        return "it needs an NVIDIA GPU and a CUDA build of torch"
    major, minor = torch.cuda.get_device_capability(index)
    if (major, minor) < _OLDEST:
        return f"it needs a GPU of sm_80 or later, not sm_{major}{minor}"
    from model.scan.cuda import compile as cuda_compile

    return cuda_compile.why_unavailable()


def _current() -> int | None:
    """The index of the current GPU; None where there is none."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return None
    return torch.cuda.current_device()
