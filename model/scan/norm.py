"""Residual add + RMSNorm with a float32 residual stream."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.scan import norm_cpu
from model.scan.fused import check_backend, fused_backend
from model.scan.problem import ScanError


def rms_norm_residual(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float = 1e-5, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Add x to the residual stream and normalise the sum over its last dimension.

    Args:
        x: (..., D), any float dtype. residual: (..., D) or None for the first block.
        weight: (D,).
        backend: "auto", "torch", "cpu" (C++) or "triton".

    Returns:
        The normalised sum in the dtype of x, and the sum itself in float32 (float64 stays).

    Raises:
        ScanError: shapes do not fit, or the backend cannot run here.
    """
    if weight.shape != x.shape[-1:] or (residual is not None and residual.shape != x.shape):
        stream = None if residual is None else tuple(residual.shape)
        raise ScanError(
            f"norm: x is {tuple(x.shape)}, residual {stream}, weight {tuple(weight.shape)}; "
            "x and residual must agree and weight must match their last dimension"
        )
    tensors = (x, weight) if residual is None else (x, residual, weight)
    if backend == "auto":
        backend = fused_backend(*tensors)
    check_backend("norm", backend, *tensors)
    if backend == "torch":
        return norm_reference(x, residual, weight, eps)
    normed, total = norm_op(x, residual, weight, eps, backend)
    return normed, total


def norm_reference(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The specification, by PyTorch's own operators."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    total = x.to(dtype) if residual is None else x.to(dtype) + residual.to(dtype)
    return F.rms_norm(total, (total.shape[-1],), weight.to(dtype), eps).to(x.dtype), total


def _kernels(backend: str) -> ModuleType:
    if backend == "triton":
        from model.scan.gpu import norm as gpu_norm  # Triton takes a second to import

        return gpu_norm
    return norm_cpu


@torch.library.custom_op("videomambapro::norm_residual", mutates_args=())
def norm_op(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, backend: str
) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(x):  # where Triton launches
        normed, total = _kernels(backend).forward(x, residual, weight, eps)
    return normed.to(x.dtype), total


@norm_op.register_fake
def _norm_fake(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, backend: str
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=torch.float32)


@torch.library.custom_op("videomambapro::norm_residual_backward", mutates_args=())
def _norm_backward_op(
    dnormed: Tensor, dtotal: Tensor, total: Tensor, weight: Tensor, eps: float, backend: str
) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(total):
        dx, dweight = _kernels(backend).backward(dnormed, dtotal, total, weight, eps)
    return dx, dweight.to(weight.dtype)


@_norm_backward_op.register_fake
def _norm_backward_fake(
    dnormed: Tensor, dtotal: Tensor, total: Tensor, weight: Tensor, eps: float, backend: str
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(total), weight.new_empty(weight.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, residual, weight, ctx.eps, ctx.backend = inputs
    ctx.dtypes = x.dtype, None if residual is None else residual.dtype
    ctx.save_for_backward(output[1], weight)


def _backward(ctx: Any, dnormed: Tensor, dtotal: Tensor) -> tuple[Tensor | None, ...]:
    total, weight = ctx.saved_tensors
    dx, dweight = _norm_backward_op(dnormed, dtotal, total, weight, ctx.eps, ctx.backend)
    x_dtype, residual_dtype = ctx.dtypes
    dresidual = None if residual_dtype is None else dx.to(residual_dtype)
    return dx.to(x_dtype), dresidual, dweight, None, None


norm_op.register_autograd(_backward, setup_context=_setup_context)
