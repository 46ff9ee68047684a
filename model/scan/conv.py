"""Depthwise causal convolution + bias + SiLU, the local mixing in front of the scan."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.scan import conv_cpu
from model.scan.fused import check_backend, fused_backend
from model.scan.problem import ScanError, token_major


def causal_conv1d_silu(
    x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool = False, backend: str = "auto"
) -> Tensor:
    """SiLU(conv(x) + bias) where a token sees itself and the K - 1 tokens before it.

    Args:
        x: (B, D, L), any strides. weight: (D, K) or (D, 1, K). bias: (D,) or None.
        reverse: anti-causal: what flipping the tokens, convolving and flipping back gives.
        backend: "auto", "torch", "cpu" (C++) or "triton".

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
    out: Tensor = conv_op(x, taps, bias, reverse, backend)
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


def _kernels(backend: str) -> ModuleType:
    if backend == "triton":
        from model.scan.gpu import conv as gpu_conv  # Triton takes a second to import

        return gpu_conv
    return conv_cpu


@torch.library.custom_op("videomambapro::conv_silu", mutates_args=())
def conv_op(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool, backend: str) -> Tensor:
    with torch.cuda.device_of(x):  # where Triton launches
        out: Tensor = _kernels(backend).forward(x, weight, bias, reverse)
    return out


@conv_op.register_fake
def _conv_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool, backend: str
) -> Tensor:
    batch, channels, length = x.shape
    return token_major(batch, channels, length, x, x.dtype)


@torch.library.custom_op("videomambapro::conv_silu_backward", mutates_args=())
def _conv_backward_op(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.cuda.device_of(x):
        dx, dweight, dbias = _kernels(backend).backward(dout, x, weight, bias, reverse)
    dbias = dbias if bias is None else dbias.to(bias.dtype)
    return dx.to(x.dtype), dweight.to(weight.dtype).contiguous(), dbias


@_conv_backward_op.register_fake
def _conv_backward_fake(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, length = x.shape
    dx = token_major(batch, channels, length, x, x.dtype)
    dbias = x.new_empty(0, dtype=torch.float32) if bias is None else bias.new_empty(bias.shape)
    return dx, weight.new_empty(weight.shape), dbias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.reverse, ctx.backend = inputs
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    dx, dweight, dbias = _conv_backward_op(dout, x, weight, bias, ctx.reverse, ctx.backend)
    return dx, dweight, None if bias is None else dbias, None, None


conv_op.register_autograd(_backward, setup_context=_setup_context)
