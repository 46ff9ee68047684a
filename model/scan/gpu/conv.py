"""Depthwise causal convolution + bias + SiLU in Triton.

A program owns a tile of tokens x channels. Backward recomputes the convolution where it needs it
and writes one partial sum of the weight's gradient per tile: no atomics.
"""

# Kernel arguments are typed when a kernel is launched, not by annotations.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
from torch import Tensor

from model.scan.gpu.language import silu_slope, tl, triton
from model.scan.problem import token_major

_TOKENS, _CHANNELS = 64, 32


@triton.jit
def _convolve(x, weight, bias, x_d, x_l, position, d, has_d, channels, length,
              TAPS: tl.constexpr, REVERSE: tl.constexpr):  # fmt: skip
    """Convolution + bias at scan positions (T,) of channels (C,); zero outside the sequence."""
    y = tl.zeros((position.shape[0], d.shape[0]), tl.float32) + bias[None, :]
    for tap in tl.static_range(TAPS):
        at = position - (TAPS - 1 - tap)
        token = length - 1 - at if REVERSE else at
        has = ((at >= 0) & (at < length))[:, None] & has_d[None, :]
        value = tl.load(x + d[None, :] * x_d + token[:, None] * x_l, has, other=0.0)
        factor = tl.load(weight + tap * channels + d, has_d, other=0.0)
        y += value.to(tl.float32) * factor[None, :]
    return y


@triton.jit
def _forward_kernel(x, weight, bias, out, x_b, x_d, x_l, channels, length,
                    HAS_BIAS: tl.constexpr, REVERSE: tl.constexpr, TAPS: tl.constexpr,
                    TOKENS: tl.constexpr, CHANNELS: tl.constexpr):  # fmt: skip
    sample = tl.program_id(2).to(tl.int64)
    position = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    has_d = d < channels
    offset = tl.load(bias + d, has_d, other=0.0) if HAS_BIAS else tl.zeros((CHANNELS,), tl.float32)
    y = _convolve(x + sample * x_b, weight, offset, x_d, x_l, position, d, has_d, channels, length,
                  TAPS, REVERSE)  # fmt: skip
    token = length - 1 - position if REVERSE else position
    here = sample * length * channels + token[:, None] * channels + d[None, :]
    tl.store(out + here, y * tl.sigmoid(y), (position < length)[:, None] & has_d[None, :])


@triton.jit
def _backward_kernel(x, weight, bias, dout, dx, dweight, dbias,
                     x_b, x_d, x_l, dout_b, dout_d, dout_l, channels, length,
                     HAS_BIAS: tl.constexpr, REVERSE: tl.constexpr, TAPS: tl.constexpr,
                     TOKENS: tl.constexpr, CHANNELS: tl.constexpr):  # fmt: skip
    tile, sample = tl.program_id(0), tl.program_id(2).to(tl.int64)
    position = tile * TOKENS + tl.arange(0, TOKENS)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    has_d = d < channels
    offset = tl.load(bias + d, has_d, other=0.0) if HAS_BIAS else tl.zeros((CHANNELS,), tl.float32)
    x, dout = x + sample * x_b, dout + sample * dout_b
    partial = (sample * tl.num_programs(0) + tile) * channels
    dx_tile = tl.zeros((TOKENS, CHANNELS), tl.float32)
    for tap in tl.static_range(TAPS):
        # The token that reads this one through the tap, and its gradient before SiLU.
        reader = position + (TAPS - 1 - tap)
        token = length - 1 - reader if REVERSE else reader
        has = (reader < length)[:, None] & has_d[None, :]
        y = _convolve(
            x, weight, offset, x_d, x_l, reader, d, has_d, channels, length, TAPS, REVERSE
        )
        dy = tl.load(dout + d[None, :] * dout_d + token[:, None] * dout_l, has, other=0.0)
        dy = dy.to(tl.float32) * silu_slope(y)
        dx_tile += dy * tl.load(weight + tap * channels + d, has_d, other=0.0)[None, :]
        token = length - 1 - position if REVERSE else position
        has = (position < length)[:, None] & has_d[None, :]
        value = tl.load(x + d[None, :] * x_d + token[:, None] * x_l, has, other=0.0)
        dfactor = tl.sum(dy * value.to(tl.float32), axis=0)
        tl.store(dweight + partial * TAPS + tap * channels + d, dfactor, has_d)
        if HAS_BIAS and tap == TAPS - 1:
            tl.store(dbias + partial + d, tl.sum(dy, axis=0), has_d)
    token = length - 1 - position if REVERSE else position
    here = sample * length * channels + token[:, None] * channels + d[None, :]
    tl.store(dx + here, dx_tile, (position < length)[:, None] & has_d[None, :])


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
    """SiLU(conv(x) + bias) for x (B, D, L) and weight (D, K), in the dtype of x."""
    batch, channels, length = x.shape
    out = token_major(batch, channels, length, x, x.dtype)
    taps, offset = _parameters(weight, bias)
    _forward_kernel[_grid(x)](
        *(x, taps, offset, out, *x.stride(), channels, length),
        **_flags(weight, bias, reverse),
    )
    return out


def backward(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias (empty without one); those of parameters in float32."""
    batch, channels, length = x.shape
    dx = token_major(batch, channels, length, x, x.dtype)
    taps, offset = _parameters(weight, bias)
    tiles = _grid(x)[0]
    dweight = x.new_empty((batch * tiles, weight.shape[1], channels), dtype=torch.float32)
    dbias = x.new_empty((batch * tiles, 0 if bias is None else channels), dtype=torch.float32)
    _backward_kernel[_grid(x)](
        *(x, taps, offset, dout, dx, dweight, dbias),
        *(*x.stride(), *dout.stride(), channels, length),
        **_flags(weight, bias, reverse),
    )
    return dx, dweight.sum(0).t(), dbias.sum(0)


def _parameters(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    taps = weight.to(torch.float32).t().contiguous()  # (K, D)
    return taps, taps if bias is None else bias.to(torch.float32).contiguous()


def _grid(x: Tensor) -> tuple[int, int, int]:
    batch, channels, length = x.shape
    return triton.cdiv(length, _TOKENS), triton.cdiv(channels, _CHANNELS), batch


def _flags(weight: Tensor, bias: Tensor | None, reverse: bool) -> dict[str, int | bool]:
    return {
        "HAS_BIAS": bias is not None,
        "REVERSE": reverse,
        "TAPS": weight.shape[1],
        "TOKENS": _TOKENS,
        "CHANNELS": _CHANNELS,
    }
