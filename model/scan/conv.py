"""Depthwise causal convolution + bias + SiLU, the local mixing in front of the scan."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.scan import conv_cpu
from model.scan.native import library
from model.scan.problem import ScanError, token_major


def causal_conv1d_silu(
    x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool = False, backend: str = "auto"
) -> Tensor:
    """SiLU(conv(x) + bias) where a token sees itself and the K - 1 tokens before it.

    Args:
        x: (B, D, L), any strides. weight: (D, K) or (D, 1, K). bias: (D,) or None.
        reverse: anti-causal: what flipping the tokens, convolving and flipping back gives.
        backend: "auto", "torch" or "cpu" (the fused C++ kernel).

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
        backend = "cpu" if library.runs(x) else "torch"
    taps = weight.reshape(channels, -1)
    match backend:
        case "torch":
            return conv_reference(x, taps.to(x.dtype), bias, reverse)
        case "cpu" if library.runs(x):
            out: Tensor = conv_op(x, taps, bias, reverse)
            return out
        case "cpu":
            raise ScanError(f"conv: the cpu kernel cannot run {x.dtype} on {x.device} here")
    raise ScanError(f"conv: there is no backend {backend!r}; choose auto, torch or cpu")


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


@torch.library.custom_op("videomambapro::conv_silu", mutates_args=())
def conv_op(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
    return conv_cpu.forward(x, weight, bias, reverse)


@conv_op.register_fake
def _conv_fake(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
    batch, channels, length = x.shape
    return token_major(batch, channels, length, x, x.dtype)


@torch.library.custom_op("videomambapro::conv_silu_backward", mutates_args=())
def _conv_backward_op(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dweight, dbias = conv_cpu.backward(dout, x, weight, bias, reverse)
    dbias = dbias if bias is None else dbias.to(bias.dtype)
    return dx.to(x.dtype), dweight.to(weight.dtype).contiguous(), dbias


@_conv_backward_op.register_fake
def _conv_backward_fake(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, length = x.shape
    dx = token_major(batch, channels, length, x, x.dtype)
    dbias = x.new_empty(0, dtype=torch.float32) if bias is None else bias.new_empty(bias.shape)
    return dx, weight.new_empty(weight.shape), dbias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.reverse = inputs
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    dx, dweight, dbias = _conv_backward_op(dout, x, weight, bias, ctx.reverse)
    return dx, dweight, None if bias is None else dbias, None


conv_op.register_autograd(_backward, setup_context=_setup_context)
