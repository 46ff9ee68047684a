"""The part of a mixer between its outer projections, with a backward pass of its own.

Autograd would concatenate the gradients of the two halves of the input and of the three parts of
x_proj's output, and add up those of tensors that are read twice. Here each gradient is written, or
accumulated by a matrix product, into the memory that the next product reads. The maths is that of
``Mixer.compose``.

Legend: B batch, L tokens, D inner_dim, N d_state, R dt_rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.config import ModelConfig
from model.scan import conv, op
from model.scan.cuda.plan import MAX_STATES
from model.scan.dispatch import choose
from model.scan.eager import as_given
from model.scan.fused import fused_backend
from model.scan.problem import Scan

_SUFFIXES = ("", "_b")  # of the scan's arguments, by direction


class Way(NamedTuple):
    """The parameters that lead from the input to the scan of one direction."""

    conv_weight: Tensor  # (D, 1, K)
    conv_bias: Tensor  # (D,)
    x_proj: Tensor  # (R + 2 N, D)
    dt_proj: Tensor  # (D, R)
    dt_bias: Tensor  # (D,)
    skip: Tensor  # (D,)


@dataclass(frozen=True)
class Options:
    """The arguments of ``inner`` that are not tensors."""

    scans_input: bool  # the scan reads the input itself, not its convolution
    first_token: bool
    mask_backward: bool
    scan_backend: str  # a name that ``op.kernels`` takes
    conv_backend: str  # "cpu" or "cuda"


def inner(
    xz: Tensor, A: Tensor, A_b: Tensor | None, ways: Sequence[Way], options: Options
) -> Tensor:
    """xz (B, L, 2 D) -> (B, L, D): convolution, projections, both scans and gate.

    ``ways`` has one entry where both directions share their parameters, two where the backward
    direction has its own. Without ``A_b`` there is the forward scan only. Everything is computed in
    the dtype of xz, the state in float32.
    """
    typed = [
        way._replace(x_proj=way.x_proj.to(xz.dtype), dt_proj=way.dt_proj.to(xz.dtype))
        for way in ways
    ]
    tensors = (tensor for way in typed for tensor in way)
    out: Tensor = _Inner.apply(options, xz, A, A_b, *tensors)  # type: ignore[no-untyped-call]
    return out


def fused_backends(xz: Tensor, config: ModelConfig) -> tuple[str, str] | None:
    """The backends of scan and convolution for ``inner``; None when ``Mixer.compose`` must run.

    ``inner`` serves training, where its backward pass saves memory traffic. torch.compile traces
    the operators of ``Mixer.compose``.
    """
    if not (torch.is_grad_enabled() and xz.requires_grad) or torch.compiler.is_compiling():
        return None
    device, convolution = xz.device.type, fused_backend(xz)
    if config.scan_backend not in ("auto", *op.BACKENDS) or convolution == "torch":
        return None
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) != xz.dtype:
        return None
    fits_cuda = config.d_state <= MAX_STATES
    scan = choose(config.scan_backend, xz.device, is_double=False, fits_cuda=fits_cuda)
    return scan, convolution


class _Inner(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, options: Options, xz: Tensor, A: Tensor, A_b: Tensor | None, *tensors: Tensor
    ) -> Tensor:
        ctx.options, ctx.dtypes = options, [tensor.dtype for tensor in tensors]
        ways, activations = _ways(tensors), list[Tensor]()
        with as_given(xz):
            for index, way in enumerate(ways):
                activations += _scan_inputs(options, xz, way, reverse=index == 1)
            scan = _scan(options, xz, A, A_b, ways, activations)
            done = op.kernels(options.scan_backend).forward(scan, keep=True)
        ctx.save_for_backward(
            *(xz, A, A_b, done.pre_gate, done.states), *activations, *(t for w in ways for t in w)
        )
        return done.out.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        options: Options = ctx.options
        xz, A, A_b, pre_gate, states, *rest = ctx.saved_tensors
        count = len(ctx.dtypes) // len(Way._fields)
        activations, ways = rest[: 3 * count], _ways(rest[3 * count :])
        dxz = torch.empty_like(xz, memory_format=torch.contiguous_format)
        dx, dz = _halves(dxz)
        # The gradient of x_proj's output, whose columns are the low-rank step, B and C.
        dprojected = [torch.empty_like(activations[3 * i + 1]) for i in range(count)]
        into = {"z": dz}
        for suffix, buffer in zip(_SUFFIXES, dprojected, strict=False):
            _, into["B" + suffix], into["C" + suffix] = _columns(buffer, ways[0])
        with as_given(xz):
            scan = _scan(options, xz, A, A_b, ways, activations)
            kernels = op.kernels(options.scan_backend)
            grads = kernels.backward(scan, dout.transpose(1, 2), None, pre_gate, states, into)
            dparameters: list[Tensor] = []
            for index, way in enumerate(ways):
                convolved, projected, _ = activations[3 * index : 3 * index + 3]
                suffix, product = _SUFFIXES[index], dprojected[index].flatten(0, 1)
                step_grads = _step_backward(grads["delta" + suffix], projected, way, product)
                du = None if options.scans_input else grads["u" + suffix]
                dconvolved = _projection_backward(du, way, product)
                taps = way.conv_weight.flatten(1)
                dx_of_way, dconv = conv.kernels(options.conv_backend).backward(
                    dconvolved.view(*xz.shape[:2], -1).transpose(1, 2),
                    *(_halves(xz)[0], taps, way.conv_bias, index == 1),
                    dx if index == 0 else None,
                )
                if index > 0:
                    dx += dx_of_way
                dweight, dbias = dconv.split([taps.numel(), len(taps)])
                dparameters += [dweight.view_as(way.conv_weight), dbias]
                dparameters += [product.t() @ _rows(convolved, xz.dtype), step_grads]
                dparameters += [grads["delta_bias" + suffix], grads["D" + suffix]]
            if options.scans_input:
                dx += grads["u"]
        typed = [grad.to(dtype) for grad, dtype in zip(dparameters, ctx.dtypes, strict=True)]
        dA_b = None if A_b is None else grads["A_b"].to(A_b.dtype)
        return (None, dxz, grads["A"].to(A.dtype), dA_b, *typed)


def _step_backward(ddelta: Tensor, projected: Tensor, way: Way, product: Tensor) -> Tensor:
    """The gradient of dt_proj; that of its input goes into the first columns of ``product``."""
    rank = way.dt_proj.shape[1]
    rows = _rows(ddelta, product.dtype)
    torch.mm(rows, way.dt_proj, out=product[:, :rank])
    return rows.t() @ projected.flatten(0, 1)[:, :rank]


def _projection_backward(du: Tensor | None, way: Way, product: Tensor) -> Tensor:
    """The gradient (B L, D) of the convolution's output; ``du`` is the scan's part, if any."""
    if du is None:
        return product @ way.x_proj
    return _rows(du, product.dtype).addmm_(product, way.x_proj)


def _ways(tensors: Sequence[Tensor]) -> list[Way]:
    size = len(Way._fields)
    return [Way(*tensors[i : i + size]) for i in range(0, len(tensors), size)]


def _halves(xz: Tensor) -> tuple[Tensor, Tensor]:
    """x and z (B, D, L) of xz (B, L, 2 D), as views."""
    x, z = xz.transpose(1, 2).chunk(2, dim=1)
    return x, z


def _columns(projected: Tensor, way: Way) -> tuple[Tensor, Tensor, Tensor]:
    """The low-rank step (B, R, L), B and C (B, N, L) in the output of x_proj, as views."""
    rank = way.dt_proj.shape[1]
    size = (projected.shape[-1] - rank) // 2
    columns = projected.transpose(1, 2)
    return columns[:, :rank], columns[:, rank : rank + size], columns[:, rank + size :]


def _rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, D, L) as (B L, D)."""
    return tensor.to(dtype).transpose(1, 2).flatten(0, 1)


def _scan_inputs(options: Options, xz: Tensor, way: Way, reverse: bool) -> tuple[Tensor, ...]:
    """The outputs of the convolution (B, D, L), x_proj (B, L, R + 2 N) and dt_proj (B, L, D)."""
    taps = way.conv_weight.flatten(1)
    forward = conv.kernels(options.conv_backend).forward
    convolved: Tensor = forward(_halves(xz)[0], taps, way.conv_bias, reverse)
    projected = F.linear(convolved.transpose(1, 2), way.x_proj)
    return convolved, projected, F.linear(projected[..., : way.dt_proj.shape[1]], way.dt_proj)


def _scan(
    options: Options,
    xz: Tensor,
    A: Tensor,
    A_b: Tensor | None,
    ways: Sequence[Way],
    activations: Sequence[Tensor],
) -> Scan:
    x, z = _halves(xz)
    given: dict[str, Any] = {}
    for index, way in enumerate(ways):
        suffix = _SUFFIXES[index]
        convolved, projected, delta = activations[3 * index : 3 * index + 3]
        _, given["B" + suffix], given["C" + suffix] = _columns(projected, way)
        given["delta" + suffix] = delta.transpose(1, 2)
        given["delta_bias" + suffix], given["D" + suffix] = way.dt_bias, way.skip
        if not options.scans_input:
            given["u" + suffix] = convolved
    return Scan(
        **({"u": x} | given),
        A=A,
        A_b=A_b,
        z=z,
        delta_softplus=True,
        first_token=options.first_token,
        mask_current=options.mask_backward and A_b is not None,
    )
