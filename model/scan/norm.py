"""Residual add + RMSNorm with a float32 residual stream."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.scan import norm_cpu
from model.scan.eager import eager_entrance, is_watched
from model.scan.fused import check_backend, fused_backend
from model.scan.problem import ScanError

Backward = Callable[..., tuple[Tensor, Tensor, Tensor]]


def rms_norm_residual(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float = 1e-5, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Add x to the residual stream and normalise the sum over its last dimension.

    Args:
        x: (..., D), any float dtype. residual: (..., D) or None for the first block.
        weight: (D,).
        backend: "auto", "torch", "cpu" (C++) or "cuda" (CUDA C++, for D up to 1024).

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
        if backend == "cuda" and not _kernels(backend).fits(x.shape[-1]):
            backend = "torch"
    check_backend("norm", backend, *tensors)
    if backend == "torch":
        return norm_reference(x, residual, weight, eps)
    run = norm_op if is_watched() else _run
    normed, total = run(x, residual, weight, eps, backend)
    return normed, total


def norm_reference(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The specification, by PyTorch's own operators."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    total = x.to(dtype) if residual is None else x.to(dtype) + residual.to(dtype)
    return F.rms_norm(total, (total.shape[-1],), weight.to(dtype), eps).to(x.dtype), total


def _kernels(backend: str) -> ModuleType:
    if backend == "cuda":
        from model.scan.cuda import norm as norm_cuda  # only GPU machines need it

        return norm_cuda
    return norm_cpu


def _forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, backend: str
) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(x):  # kernels are launched on the current device
        normed, total = _kernels(backend).forward(x, residual, weight, eps)
    return normed.to(x.dtype), total


norm_op = torch.library.custom_op("videomambapro::norm_residual", _forward, mutates_args=())


@norm_op.register_fake
def _norm_fake(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, backend: str
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=torch.float32)


def _backward(
    dnormed: Tensor,
    dtotal: Tensor | None,
    total: Tensor,
    weight: Tensor,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the residual, of x (empty in float32: the same) and, in float32, of weight."""
    with torch.cuda.device_of(total):
        dresidual, dx, dweight = _kernels(backend).backward(dnormed, dtotal, total, weight, eps)
    return dresidual, dx, dweight


_backward_op = torch.library.custom_op(
    "videomambapro::norm_residual_backward_v2", _backward, mutates_args=()
)


@_backward_op.register_fake
def _norm_backward_fake(
    dnormed: Tensor,
    dtotal: Tensor | None,
    total: Tensor,
    weight: Tensor,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    is_half = dnormed.dtype != torch.float32
    dx = dnormed.new_empty(dnormed.shape) if is_half else dnormed.new_empty(0)
    return torch.empty_like(total), dx, weight.new_empty(weight.shape, dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, residual, weight, ctx.eps, ctx.backend = inputs
    ctx.dtypes = x.dtype, None if residual is None else residual.dtype
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], weight)


def _gradients(
    ctx: Any, backward: Backward, dnormed: Tensor | None, dtotal: Tensor | None
) -> tuple[Tensor | None, ...]:
    total, weight = ctx.saved_tensors
    x_dtype, residual_dtype = ctx.dtypes
    if dnormed is None:  # only the residual stream is used
        dnormed = torch.zeros_like(total, dtype=x_dtype)
    dresidual, dx, dweight = backward(dnormed, dtotal, total, weight, ctx.eps, ctx.backend)
    if x_dtype == torch.float32:
        dx = dresidual
    into_stream = None if residual_dtype is None else dresidual.to(residual_dtype)
    return dx, into_stream, dweight.to(weight.dtype), None, None


_run = eager_entrance(
    _forward, _setup_context, lambda ctx, *grads: _gradients(ctx, _backward, *grads)
)
norm_op.register_autograd(
    lambda ctx, *grads: _gradients(ctx, _backward_op, *grads), setup_context=_setup_context
)
