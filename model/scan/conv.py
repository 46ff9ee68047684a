"""Depthwise causal convolution + bias + SiLU, the local mixing in front of the scan."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.scan import conv_cpu
from model.scan.eager import eager_entrance, is_watched
from model.scan.fused import check_backend, fused_backend
from model.scan.problem import ScanError, token_major

Backward = Callable[..., tuple[Tensor, Tensor]]


def causal_conv1d_silu(
    x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool = False, backend: str = "auto"
) -> Tensor:
    """SiLU(conv(x) + bias) where a token sees itself and the K - 1 tokens before it.

    Args:
        x: (B, D, L), any strides. weight: (D, K) or (D, 1, K). bias: (D,) or None.
        reverse: anti-causal: what flipping the tokens, convolving and flipping back gives.
        backend: "auto", "torch", "cpu" (C++) or "cuda" (CUDA C++).

    Returns:
        (B, D, L) in the dtype of x.

    Raises:
        ScanError: shapes do not fit, or the backend cannot run here.
    """
    channels = x.shape[1]
    if weight.shape[0] != channels or weight.numel() != channels * weight.shape[-1]:
        raise ScanError(
            f"conv: weight is {tuple(weight.shape)}; x {tuple(x.shape)} asks for ({channels}, K)"
        )
    if backend == "auto":
        backend = fused_backend(x)
    check_backend("conv", backend, x)
    taps = weight.reshape(channels, -1)
    if backend == "torch":
        return conv_reference(x, taps.to(x.dtype), bias, reverse)
    run = conv_op if is_watched() else _run
    out: Tensor = run(x, taps, bias, reverse, backend)
    return out


def conv_reference(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
    """The specification, for weight (D, K), by PyTorch's own convolution."""
    kernel = weight[:, None, :]
    padding = kernel.shape[-1] - 1
    if reverse:
        padded, kernel = F.pad(x, (0, padding)), kernel.flip(-1)
    else:
        padded = F.pad(x, (padding, 0))
    bias = None if bias is None else bias.to(x.dtype)
    return F.silu(F.conv1d(padded, kernel, bias, groups=x.shape[1]))


def kernels(backend: str) -> ModuleType:
    """The module behind the name of a fused backend."""
    if backend == "cuda":
        from model.scan.cuda import conv as conv_cuda  # only GPU machines need it

        return conv_cuda
    return conv_cpu


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool, backend: str) -> Tensor:
    with torch.cuda.device_of(x):  # kernels are launched on the current device
        out: Tensor = kernels(backend).forward(x, weight, bias, reverse)
    return out


conv_op = torch.library.custom_op("videomambapro::conv_silu", _forward, mutates_args=())


@conv_op.register_fake
def _conv_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool, backend: str
) -> Tensor:
    batch, channels, length = x.shape
    return token_major(batch, channels, length, x, x.dtype)


def _backward(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """The gradient of x and, in one float32 row, those of weight (D * K) and bias (D)."""
    with torch.cuda.device_of(x):
        dx, dparameters = kernels(backend).backward(dout, x, weight, bias, reverse)
    return dx, dparameters


_backward_op = torch.library.custom_op(
    "videomambapro::conv_silu_backward_v2", _backward, mutates_args=()
)


@_backward_op.register_fake
def _conv_backward_fake(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool, backend: str
) -> tuple[Tensor, Tensor]:
    batch, channels, length = x.shape
    dx = token_major(batch, channels, length, x, x.dtype)
    return dx, x.new_empty(weight.numel() + channels, dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.reverse, ctx.backend = inputs
    ctx.save_for_backward(x, weight, bias)


def _gradients(ctx: Any, backward: Backward, dout: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    dx, dparameters = backward(dout, x, weight, bias, ctx.reverse, ctx.backend)
    dweight, dbias = dparameters[: weight.numel()], dparameters[weight.numel() :]
    return (
        dx,
        dweight.view(weight.shape).to(weight.dtype),
        None if bias is None else dbias.to(bias.dtype),
        None,
        None,
    )


_run = eager_entrance(_forward, _setup_context, lambda ctx, dout: _gradients(ctx, _backward, dout))
conv_op.register_autograd(
    lambda ctx, dout: _gradients(ctx, _backward_op, dout), setup_context=_setup_context
)
