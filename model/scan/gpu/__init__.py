"""Fused Triton kernels for GPUs; nothing here is imported before a backend asks for it."""

import importlib.util
import os

import torch


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_available(device: str) -> bool:
    """Whether the kernels run on a type of device: CUDA, or any under the Triton interpreter."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return importlib.util.find_spec("triton") is not None and (device == "cuda" or interpreted)
