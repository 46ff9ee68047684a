"""CUDA C++ kernels, compiled at run time; nothing is compiled before a backend asks for it."""

import torch

from model.scan.constant import constant_under_compile

_OLDEST = (8, 0)  # the kernels' bf16 conversions need sm_80


@constant_under_compile
def is_available(device: str) -> bool:
    """Whether the kernels can be compiled for a type of device and run on it."""
    return why_unavailable(device) is None


def why_unavailable(device: str) -> str | None:
    """What is missing; None when nothing is."""
    if device != "cuda" or torch.version.cuda is None or not torch.cuda.is_available():
        return "it needs an NVIDIA GPU and a CUDA build of torch"
    capability = torch.cuda.get_device_capability()
    if capability < _OLDEST:
        return f"it needs a GPU of sm_80 or later, not sm_{capability[0]}{capability[1]}"
    from model.scan.cuda import compile as cuda_compile

    return cuda_compile.why_unavailable()
