"""Errors of the fused kernels against float64, over layouts, dtypes and shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from model.scan import bidirectional_scan, causal_conv1d_silu, rms_norm_residual
from pipeline.bench.scan import Tensors, make_tensors

Shape = tuple[int, int, int, int]
Tell = Callable[[str], object]

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}
f32, bf16, f16 = TOLERANCE
# batch, channels, tokens, states: ragged, wide, long, few and many warps, every padded state size
SHAPES: list[tuple[Shape, torch.dtype]] = [
    ((2, 70, 33, 16), f32),
    ((1, 1152, 1569, 16), f32),
    ((16, 1152, 100, 16), bf16),
    ((1, 96, 12_545, 16), bf16),
    ((2, 48, 257, 16), f16),
    ((2, 48, 1, 8), f32),
    ((3, 45, 130, 13), bf16),
    ((1, 33, 70_000, 32), f32),
    ((2, 40, 300, 64), f32),
]
SMALL: list[tuple[Shape, torch.dtype]] = [
    ((2, 37, 50, 16), bf16),
    ((1, 40, 300, 16), f32),
    ((1, 20, 33, 8), f16),
    ((1, 18, 34, 32), f32),
]


def scan_errors(
    cases: Sequence[tuple[Shape, torch.dtype]], device: str, tell: Tell, backend: str = "cuda"
) -> list[str]:
    """What is wrong with values and gradients, one line each; `tell` gets every case's worst error.

    Two runs must also give the same bits.
    """
    wrong = []
    for shape, dtype in cases:
        for separate in (False, True):
            tensors = make_tensors(shape, dtype, device)
            tensors["A_b"] = (0.7 * tensors["A_b"].detach()).requires_grad_()
            if separate:
                names = ("u", "delta", "B", "C", "D", "delta_bias")
                tensors |= {f"{n}_b": _another(tensors[n]) for n in names}
            dout = torch.randn_like(tensors["u"])
            found = _values_and_gradients(tensors, dout, backend)
            doubles = {name: t.detach().double().requires_grad_() for name, t in tensors.items()}
            truth = _values_and_gradients(doubles, dout.double(), "chunked")
            errors = {name: _relative(found[name], truth[name]) for name in truth}
            name = max(errors, key=lambda key: (math.isnan(errors[key]), errors[key]))
            again = _values_and_gradients(tensors, dout, backend)
            alike = all(torch.equal(found[key], again[key]) for key in found)
            line = (
                f"scan {shape} {dtype} {'separate' if separate else 'shared'}: worst error "
                f"{errors[name]:.1e} ({name}), allowed {TOLERANCE[dtype]:.0e}"
                f"{'' if alike else '; TWO RUNS DIFFER'}"
            )
            tell(line)
            if not errors[name] <= TOLERANCE[dtype] or not alike:
                wrong.append(line)
    return wrong


def _another(tensor: Tensor) -> Tensor:
    return (0.5 * tensor.detach().roll(1, 0).flip(-1) + 0.1).requires_grad_()


def _relative(found: Tensor, truth: Tensor) -> float:
    largest = truth.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return float((found.double() - truth).abs().max() / largest)


def _values_and_gradients(tensors: Tensors, dout: Tensor, backend: str) -> Tensors:
    arguments: dict[str, Any] = dict(tensors)
    out = bidirectional_scan(**arguments, backend=backend)
    # A masked scan of one token ignores A_b.
    grads = torch.autograd.grad(
        out, list(tensors.values()), dout, allow_unused=True, materialize_grads=True
    )
    return {"out": out.detach()} | dict(zip(tensors, grads, strict=True))


def around_errors(device: str, tell: Tell, backend: str = "cuda") -> list[str]:
    """The same for the convolution and the norm."""
    wrong = []
    for dtype in TOLERANCE:
        x = torch.randn(2, 300, 96, device=device, dtype=dtype)
        weight, bias, scale = (torch.randn(s, device=device) for s in ((96, 4), (96,), (96,)))
        residual = torch.randn(2, 300, 96, device=device)
        results: list[list[Tensor]] = []
        for to, chosen in ((dtype, backend), (torch.float64, "torch")):
            double = to == torch.float64
            leaves = [x.to(to), *(t.to(to) if double else t for t in (weight, bias, scale))]
            leaves.append(residual.to(to) if double else residual)
            x_, weight_, bias_, scale_, residual_ = (t.clone().requires_grad_() for t in leaves)
            y = causal_conv1d_silu(x_.transpose(1, 2), weight_, bias_, backend=chosen)
            normed, total = rms_norm_residual(x_, residual_, scale_, 1e-5, chosen)
            loss = y.double().square().sum() + normed.double().square().sum() + total.double().sum()
            grads = torch.autograd.grad(loss, [x_, weight_, bias_, scale_, residual_])
            results.append([y.detach(), normed.detach(), total.detach(), *grads])
        worst = max(_relative(a, b.double()) for a, b in zip(*results, strict=True))
        line = f"convolution and norm {dtype}: worst error {worst:.1e}"
        tell(line)
        if not worst <= 4 * TOLERANCE[dtype]:
            wrong.append(line)
    return wrong


def run_small() -> None:
    """The kernels over small shapes and nothing else, which is what a sanitizer has time for."""
    for shape, dtype in SMALL:
        tensors = make_tensors(shape, dtype, "cuda")
        _values_and_gradients(tensors, torch.randn_like(tensors["u"]), "cuda")
    torch.cuda.synchronize()
