"""Launches the CUDA residual add + RMSNorm (norm.cu)."""

import ctypes

import torch
from torch import Tensor

from model.scan.cuda import launch
from model.scan.cuda.elements import TYPES, are_aligned
from model.scan.cuda.launch import Int, Pointer

_WARPS = 4  # per block; each takes a row at a time
_LANES = 32
_MOST_HELD = {4: 32, 1: 20}  # elements of a row in a lane's registers, by width of a vector
# Rows that a warp walks in backward before it writes its sums, so that few bytes are written.
_ROWS_PER_WARP = 16


class _Job(ctypes.Structure):
    _fields_ = [
        *((name, Pointer) for name in ("x", "residual", "weight", "normed", "total")),
        *((name, Pointer) for name in ("dnormed", "dtotal", "dx", "dresidual", "partials")),
        *((name, ctypes.c_float) for name in ("eps", "inverse_columns")),
        *((name, Int) for name in ("rows", "columns", "rows_per_warp")),
    ]


def fits(columns: int) -> bool:
    """Whether a row of ``columns`` elements fits into the registers of a warp."""
    width = 1 if columns % 4 else 4
    return columns <= _MOST_HELD[width] * _LANES


def macros(
    dtype: torch.dtype, parameter: torch.dtype, columns: int, width: int
) -> dict[str, str | int]:
    """Macros of norm.cu for rows of ``columns`` elements, ``width`` to a vector."""
    vectors = -(-columns // (width * _LANES))
    return {
        "TYPE": TYPES[dtype],
        "PARAMETER": TYPES[parameter],
        "WIDTH": width,
        "VECTORS": vectors,
        "BLOCKS": 4 if width * vectors <= 20 and width > 1 else 2,
    }


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """(normed in the dtype of x, total in float32), contiguous, for x (..., D)."""
    x, weight = x.contiguous(), weight.contiguous()
    residual = None if residual is None else residual.to(torch.float32).contiguous()
    normed, total = torch.empty_like(x), torch.empty_like(x, dtype=torch.float32)
    job = _Job(x=x.data_ptr(), normed=normed.data_ptr(), total=total.data_ptr(), rows_per_warp=1)
    if residual is not None:
        job.residual = residual.data_ptr()
    _run("norm_forward", job, x, residual, weight, eps)
    return normed, total


def backward(
    dnormed: Tensor, dtotal: Tensor | None, total: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the residual (float32), of x in the dtype of ``dnormed``, and of the weight.

    The second is empty when that dtype is float32, for it then equals the first. ``dtotal`` is None
    when nothing else depends on the residual stream.
    """
    dnormed, weight = dnormed.contiguous(), weight.contiguous()
    dtotal = None if dtotal is None else dtotal.to(torch.float32).contiguous()
    dresidual = torch.empty_like(total)
    is_half = dnormed.dtype != torch.float32
    dx = torch.empty_like(dnormed) if is_half else dnormed.new_empty(0)
    columns = total.shape[-1]
    blocks = -(-total.numel() // columns // (_WARPS * _ROWS_PER_WARP))
    partials = total.new_empty((blocks, columns))
    job = _Job(total=total.data_ptr(), dnormed=dnormed.data_ptr(), dresidual=dresidual.data_ptr())
    job.partials, job.rows_per_warp = partials.data_ptr(), _ROWS_PER_WARP
    if dtotal is not None:
        job.dtotal = dtotal.data_ptr()
    if is_half:
        job.dx = dx.data_ptr()
    _run("norm_backward", job, dnormed, dtotal, weight, eps)
    return dresidual, dx, partials.sum(0)


def _run(
    kernel: str, job: _Job, x: Tensor, stream: Tensor | None, weight: Tensor, eps: float
) -> None:
    columns = x.shape[-1]
    job.rows, job.columns = x.numel() // columns, columns
    job.eps, job.inverse_columns = eps, 1.0 / columns
    job.weight = weight.data_ptr()
    aligned = are_aligned(4, x, weight) and (stream is None or are_aligned(4, stream))
    variant = macros(x.dtype, weight.dtype, columns, 4 if aligned else 1)
    held = int(variant["WIDTH"]) * int(variant["VECTORS"])
    shared = _WARPS * _LANES * held * 4 if job.partials else 0
    blocks = -(-job.rows // (_WARPS * job.rows_per_warp))
    kernels = launch.load("norm.cu", variant, x.device)
    kernels.launch(kernel, blocks, _WARPS * _LANES, shared, job)
