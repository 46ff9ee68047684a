"""Residual add + RMSNorm with a float32 residual stream."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.scan import norm_cpu
from model.scan.native import library
from model.scan.problem import ScanError


def rms_norm_residual(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float = 1e-5, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Add x to the residual stream and normalise the sum over its last dimension.

    Args:
        x: (..., D), any float dtype. residual: (..., D) or None for the first block.
        weight: (D,).
        backend: "auto", "torch" or "cpu" (the fused C++ kernel).

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
    doubles = (weight, *(() if residual is None else (residual,)))
    is_double = any(tensor.dtype == torch.float64 for tensor in doubles)
    runs = library.runs(x) and not is_double and x.numel() > 0
    if backend == "auto":
        backend = "cpu" if runs else "torch"
    match backend:
        case "torch":
            return norm_reference(x, residual, weight, eps)
        case "cpu" if runs:
            normed, total = norm_op(x, residual, weight, eps)
            return normed, total
        case "cpu":
            raise ScanError(f"norm: the cpu kernel cannot run {x.dtype} on {x.device} here")
    raise ScanError(f"norm: there is no backend {backend!r}; choose auto, torch or cpu")


def norm_reference(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The specification, by PyTorch's own operators."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    total = x.to(dtype) if residual is None else x.to(dtype) + residual.to(dtype)
    return F.rms_norm(total, (total.shape[-1],), weight.to(dtype), eps).to(x.dtype), total


@torch.library.custom_op("videomambapro::norm_residual", mutates_args=())
def norm_op(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    normed, total = norm_cpu.forward(x, residual, weight, eps)
    return normed.to(x.dtype), total


@norm_op.register_fake
def _norm_fake(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=torch.float32)


@torch.library.custom_op("videomambapro::norm_residual_backward", mutates_args=())
def _norm_backward_op(
    dnormed: Tensor, dtotal: Tensor, total: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    dx, dweight = norm_cpu.backward(dnormed, dtotal, total, weight, eps)
    return dx, dweight.to(weight.dtype)


@_norm_backward_op.register_fake
def _norm_backward_fake(
    dnormed: Tensor, dtotal: Tensor, total: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(total), weight.new_empty(weight.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, residual, weight, ctx.eps = inputs
    ctx.dtypes = x.dtype, None if residual is None else residual.dtype
    ctx.save_for_backward(output[1], weight)


def _backward(ctx: Any, dnormed: Tensor, dtotal: Tensor) -> tuple[Tensor | None, ...]:
    total, weight = ctx.saved_tensors
    dx, dweight = _norm_backward_op(dnormed, dtotal, total, weight, ctx.eps)
    x_dtype, residual_dtype = ctx.dtypes
    return dx.to(x_dtype), None if residual_dtype is None else dx.to(residual_dtype), dweight, None


norm_op.register_autograd(_backward, setup_context=_setup_context)
