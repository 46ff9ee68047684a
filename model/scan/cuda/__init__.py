"""CUDA C++ kernels, compiled at run time; nothing here is imported before a backend asks for it."""

import torch


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_available(device: str) -> bool:
    """Whether the kernels can be compiled for a type of device: CUDA, where NVRTC is there."""
    if device != "cuda" or torch.version.hip is not None:
        return False
    from model.scan.cuda.compile import why_unavailable

    return why_unavailable() is None
