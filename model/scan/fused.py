"""The choice of fused kernels for the small operators around the scan."""

import torch
from torch import Tensor

from model.scan import cuda
from model.scan.native import library
from model.scan.problem import ScanError


def fused_backend(*tensors: Tensor) -> str:
    """The fastest of "cpu", "cuda" and "torch" for ``tensors``."""
    device = tensors[0].device
    is_double = any(tensor.dtype == torch.float64 for tensor in tensors)
    if is_double or tensors[0].numel() == 0 or torch.compiler.is_exporting():
        return "torch"
    if device.type == "cpu" and library.is_available():
        return "cpu"
    return "cuda" if cuda.is_available(device) else "torch"


def check_backend(operator: str, backend: str, *tensors: Tensor) -> None:
    """Raise ScanError unless ``backend`` exists and can take ``tensors``."""
    device, dtypes = tensors[0].device, {tensor.dtype for tensor in tensors}
    match backend:
        case "torch":
            return
        case "cpu":
            able = device.type == "cpu" and library.is_available()
        case "cuda":
            able = cuda.is_available(device)
        case _:
            raise ScanError(
                f"{operator}: there is no backend {backend!r}; choose auto, torch, cpu or cuda"
            )
    if not able or torch.float64 in dtypes:
        kinds = ", ".join(sorted(str(dtype) for dtype in dtypes))
        raise ScanError(
            f"{operator}: the {backend} kernel cannot run {kinds} on {device.type} here"
        )
