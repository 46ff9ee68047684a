"""Launches the CUDA convolution (conv.cu)."""

import ctypes

import torch
from torch import Tensor

from model.scan.cuda import launch
from model.scan.cuda.elements import TYPES, are_aligned
from model.scan.cuda.launch import Int, Long, Pointer
from model.scan.problem import token_major

_WARPS = 4  # per block; each walks a segment of tokens
_LANES = 32
# Segments are cut until a large GPU has enough warps, and no further, because a segment of backward
# also computes K - 1 tokens of the next one. Shapes alone decide the cut, and thus the results.
_MOST_TOKENS, _LEAST_TOKENS, _ENOUGH_WARPS = 64, 16, 2048


class _Rows(ctypes.Structure):
    """A (B, D, L) tensor whose channels are neighbours."""

    _fields_ = [("data", Pointer), ("batch", Long), ("token", Long)]

    @classmethod
    def of(cls, tensor: Tensor, reverse: bool) -> "_Rows":
        """``reverse`` starts at the last token and goes backwards."""
        batch, _, token = tensor.stride()
        first = tensor.data_ptr()
        if not reverse:
            return cls(first, batch, token)
        return cls(first + (tensor.shape[2] - 1) * token * tensor.element_size(), batch, -token)


class _Job(ctypes.Structure):
    _fields_ = [
        *((name, _Rows) for name in ("x", "out", "dout")),
        *((name, Pointer) for name in ("weight", "bias", "partials")),
        *((name, Int) for name in ("batch", "channels", "length", "segments", "groups")),
    ]


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
    """SiLU(conv(x) + bias) for x (B, D, L) and weight (D, K), in the dtype of x."""
    out = _like(x)
    call = _Call(x, out, weight, bias, reverse)
    call.run("conv_forward", shared=0)
    return out


def backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    reverse: bool,
    dx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradient of x, in the dtype of x, and those of weight and bias as one float32 row.

    The row holds D * K elements for the weight, then D for the bias, even when there is no bias.
    The gradient of x is written into ``dx`` where that is given: (B, D, L) with neighbouring
    channels, such as half of a wider buffer.
    """
    dx = _like(x) if dx is None else dx
    dout = _with_neighbouring_channels(dout.to(x.dtype))
    call = _Call(x, dx, weight, bias, reverse, dout)
    channels, taps = weight.shape
    partials = x.new_empty((call.rows, channels * (taps + 1)), dtype=torch.float32)
    call.job.partials = partials.data_ptr()
    call.run("conv_backward", shared=_WARPS * _LANES * call.width * (taps + 1) * 4)
    return dx, partials.sum(0)


class _Call:
    """A job and its kernels; keeps alive the tensors that the job points to."""

    def __init__(
        self,
        x: Tensor,
        out: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        reverse: bool,
        dout: Tensor | None = None,
    ) -> None:
        batch, channels, length = x.shape
        taps = weight.shape[1]
        bias = None if bias is None else bias.to(weight.dtype).contiguous()
        x, weight = _with_neighbouring_channels(x), weight.contiguous()
        self._alive = (x, weight, bias, dout)
        rows = [tensor.transpose(1, 2) for tensor in (x, out, dout) if tensor is not None]
        widest = 2 if x.dtype == torch.float32 else 4  # 8 bytes
        self.width = widest if are_aligned(widest, *rows) else 1
        group, overlap = max(4, taps), 0 if dout is None else taps - 1
        self._columns = -(-channels // (_LANES * self.width))
        groups = max(1, _MOST_TOKENS // group)
        while groups * group >= 2 * _LEAST_TOKENS and groups > 1 + overlap // group:
            if batch * self._columns * -(-length // (groups * group)) >= _ENOUGH_WARPS:
                break
            groups //= 2
        groups = max(groups, 1 + overlap // group)
        segments = -(-length // (groups * group - overlap))
        self.rows = -(-batch * segments // _WARPS)
        self.job = _Job(
            x=_Rows.of(x, reverse),
            out=_Rows.of(out, reverse),
            weight=weight.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            batch=batch,
            channels=channels,
            length=length,
            segments=segments,
            groups=groups,
        )
        if dout is not None:
            self.job.dout = _Rows.of(dout, reverse)
        macros: dict[str, str | int] = {
            "TYPE": TYPES[x.dtype],
            "PARAMETER": TYPES[weight.dtype],
            "WIDTH": self.width,
            "TAPS": taps,
        }
        self._kernels = launch.load("conv.cu", macros, x.device)

    def run(self, kernel: str, shared: int) -> None:
        blocks = self.rows * self._columns
        self._kernels.launch(kernel, blocks, _WARPS * _LANES, shared, self.job)


def _like(x: Tensor) -> Tensor:
    batch, channels, length = x.shape
    return token_major(batch, channels, length, x, x.dtype)


def _with_neighbouring_channels(tensor: Tensor) -> Tensor:
    if tensor.stride(1) == 1:
        return tensor
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)
