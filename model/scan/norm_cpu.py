"""The fused C++ residual add + RMSNorm for CPUs (native/norm.cpp), called through ctypes."""

import ctypes

import torch
from torch import Tensor

from model.scan.native.library import Arguments, Int, Pointer, library


class _Job(ctypes.Structure):
    _fields_ = [
        *((name, Int) for name in ("rows", "width", "num_threads")),
        ("eps", ctypes.c_float),
        *((name, Pointer) for name in ("x", "residual", "weight", "total", "normed")),
        *((name, Pointer) for name in ("dnormed", "dtotal", "dx", "dweight")),
    ]


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """(normed, total), both float32 and contiguous, for x (..., D)."""
    arguments = Arguments()
    total, normed = (torch.empty(x.shape, dtype=torch.float32) for _ in range(2))
    job = _job(arguments, total, weight, eps)
    job.x, job.residual = arguments.dense(x), arguments.dense(residual)
    job.normed = normed.data_ptr()
    library().norm_forward(ctypes.byref(job))
    return normed, total


def backward(
    dnormed: Tensor, dtotal: Tensor | None, total: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``norm._norm_backward_op``."""
    arguments = Arguments()
    job = _job(arguments, total, weight, eps)
    tasks = (job.rows + library().norm_rows() - 1) // library().norm_rows()
    dx, dweight = torch.empty_like(total), total.new_empty((tasks, job.width))
    job.dnormed, job.dtotal = arguments.dense(dnormed), arguments.dense(dtotal)
    job.dx, job.dweight = dx.data_ptr(), dweight.data_ptr()
    library().norm_backward(ctypes.byref(job))
    is_half = dnormed.dtype != torch.float32
    return dx, dx.to(dnormed.dtype) if is_half else dx.new_empty(0), dweight.sum(0)


def _job(arguments: Arguments, total: Tensor, weight: Tensor, eps: float) -> _Job:
    job = _Job()
    job.width = total.shape[-1]
    job.rows = total.numel() // job.width
    job.eps, job.num_threads = eps, torch.get_num_threads()
    job.weight, job.total = arguments.dense(weight), total.data_ptr()
    return job
