"""Fused Triton kernels for GPUs; nothing here is imported before a backend asks for it."""

import importlib.util
import os

from model.scan.constant import constant


@constant
def is_available(device: str) -> bool:
    """Whether the kernels run on a type of device: CUDA, or any under the Triton interpreter."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return importlib.util.find_spec("triton") is not None and (device == "cuda" or interpreted)
