"""The fused C++ convolution for CPUs (native/conv.cpp), called through ctypes."""

import ctypes

import torch
from torch import Tensor

from model.scan.native.library import Arguments, Int, Pointer, Tensor3, library
from model.scan.problem import token_major


class _Job(ctypes.Structure):
    _fields_ = [
        *((n, Int) for n in ("batch", "channels", "length", "taps", "reverse", "num_threads")),
        *((name, Tensor3) for name in ("x", "out", "dout", "dx")),
        *((name, Pointer) for name in ("weight", "bias", "dweight", "dbias")),
    ]


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
    """SiLU(conv(x) + bias) for x (B, D, L) and weight (D, K), in the dtype of x."""
    arguments = Arguments()
    job = _job(arguments, x, weight, bias, reverse)
    out = token_major(*_shape(x), x, torch.float32)
    job.out = Tensor3.of(out)
    library().conv_forward(ctypes.byref(job))
    return out.to(x.dtype)


def backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    reverse: bool,
    dx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradient of x, and those of weight (D * K) and bias (D) in one float32 row.

    The gradient of x is written into ``dx`` where that is given; see cuda/conv.py.
    """
    batch, channels, _ = x.shape
    arguments = Arguments()
    job = _job(arguments, x, weight, bias, reverse)
    to = dx
    if to is None or to.dtype != torch.float32:
        to = token_major(*_shape(x), x, torch.float32)
    dweight = x.new_empty((batch, weight.shape[1], channels), dtype=torch.float32)
    dbias = x.new_empty((batch, channels), dtype=torch.float32)
    job.dout, job.dx = arguments.tensor3(dout), Tensor3.of(to)
    job.dweight, job.dbias = dweight.data_ptr(), dbias.data_ptr()
    library().conv_backward(ctypes.byref(job))
    if dx is None:
        dx = to.to(x.dtype)
    elif dx is not to:
        dx.copy_(to)
    return dx, torch.cat((dweight.sum(0).t().flatten(), dbias.sum(0)))


def _job(
    arguments: Arguments, x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool
) -> _Job:
    job = _Job()
    job.batch, job.channels, job.length = x.shape
    job.taps, job.reverse = weight.shape[1], reverse
    job.num_threads = torch.get_num_threads()
    job.x = arguments.tensor3(x)
    job.weight, job.bias = arguments.dense(weight.t()), arguments.dense(bias)
    return job


def _shape(x: Tensor) -> tuple[int, int, int]:
    batch, channels, length = x.shape
    return batch, channels, length
