"""Residual add + RMSNorm over rows in Triton; the sum is float32 whatever x is.

A program owns ROWS rows and writes one partial sum of the weight's gradient: no atomics.
"""

# Kernel arguments are typed when a kernel is launched, not by annotations.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
from torch import Tensor

from model.scan.gpu.language import next_power_of_2, tl, triton

_ROWS = 16


@triton.jit
def _forward_kernel(x, residual, weight, normed, total, rows, width, eps,
                    HAS_RESIDUAL: tl.constexpr,
                    ROWS: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    column = tl.arange(0, WIDTH)
    has = column < width
    scale = tl.load(weight + column, has, other=0.0).to(tl.float32)
    first = tl.program_id(0).to(tl.int64) * ROWS
    for i in range(ROWS):
        if first + i < rows:
            at = (first + i) * width + column
            value = tl.load(x + at, has, other=0.0).to(tl.float32)
            if HAS_RESIDUAL:
                value += tl.load(residual + at, has, other=0.0).to(tl.float32)
            rms = tl.sqrt(tl.sum(value * value, axis=0) / width + eps)
            tl.store(total + at, value, has)
            tl.store(normed + at, value / rms * scale, has)


@triton.jit
def _backward_kernel(dnormed, dtotal, total, weight, dx, dweight, rows, width, eps,
                     ROWS: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    column = tl.arange(0, WIDTH)
    has = column < width
    scale = tl.load(weight + column, has, other=0.0).to(tl.float32)
    first = tl.program_id(0).to(tl.int64) * ROWS
    dscale = tl.zeros((WIDTH,), tl.float32)
    for i in range(ROWS):
        if first + i < rows:
            at = (first + i) * width + column
            value = tl.load(total + at, has, other=0.0)
            dy = tl.load(dnormed + at, has, other=0.0).to(tl.float32)
            rms = tl.sqrt(tl.sum(value * value, axis=0) / width + eps)
            unit = value / rms
            dscale += dy * unit
            dunit = dy * scale
            shared = tl.sum(dunit * unit, axis=0) / width
            dvalue = (dunit - unit * shared) / rms + tl.load(dtotal + at, has, other=0.0)
            tl.store(dx + at, dvalue, has)
    tl.store(dweight + tl.program_id(0) * width + column, dscale, has)


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """(normed in the dtype of x, total in float32), contiguous, for x (..., D)."""
    x = x.contiguous()
    width = x.shape[-1]
    rows = x.numel() // width
    normed, total = torch.empty_like(x), torch.empty_like(x, dtype=torch.float32)
    _forward_kernel[(triton.cdiv(rows, _ROWS),)](
        x,
        x if residual is None else residual.contiguous(),
        *(weight, normed, total, rows, width, eps),
        HAS_RESIDUAL=residual is not None,
        ROWS=_ROWS,
        WIDTH=next_power_of_2(width),
    )
    return normed, total


def backward(
    dnormed: Tensor, dtotal: Tensor, total: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of x (and of the residual, which is the same) and of weight, in float32."""
    width = total.shape[-1]
    rows = total.numel() // width
    programs = triton.cdiv(rows, _ROWS)
    dx, dweight = torch.empty_like(total), total.new_empty((programs, width))
    _backward_kernel[(programs,)](
        *(dnormed.contiguous(), dtotal.contiguous(), total, weight, dx, dweight, rows, width, eps),
        ROWS=_ROWS,
        WIDTH=next_power_of_2(width),
    )
    return dx, dweight.sum(0)
