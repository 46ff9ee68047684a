"""The Triton kernels compute what the reference computes, under Triton's interpreter.

Triton must be imported with TRITON_INTERPRET=1, so test_scan_triton.py runs this in a process of
its own; `TRITON_INTERPRET=1 pytest` on this file does the same.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.scan import bidirectional_scan, causal_conv1d_silu, rms_norm_residual, selective_scan
from model.scan.gpu import scan as kernels

Make = Callable[..., dict[str, Tensor]]
Check = Callable[..., None]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes milliseconds per operation on a tile."""
    monkeypatch.setattr(kernels, "CHUNK", 8)
    monkeypatch.setattr(kernels, "_FORWARD_TILE", 8)
    monkeypatch.setattr(kernels, "_BACKWARD_TILE", 16)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 5, 19, 4), {}),
        ((2, 3, 8, 3), {"delta_softplus": False, "mask_backward": False}),
        ((1, 2, 1, 2), {"initial_state": "zero"}),
    ],
)
@pytest.mark.parametrize("separate", [False, True])
def test_scan(
    random_scan: Make,
    assert_agrees: Check,
    shape: tuple[int, int, int, int],
    options: dict[str, bool | str],
    separate: bool,
) -> None:
    layout = "strided" if separate else "token_major"
    tensors = random_scan(shape, separate=separate, gated=not separate, layout=layout)
    if "delta_softplus" in options:
        for name in ("delta", "delta_b", "delta_bias", "delta_bias_b"):
            if name in tensors:
                tensors[name] = tensors[name].detach().abs()
    assert_agrees(bidirectional_scan, tensors, backend="triton", **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scan_in_half_precision(
    random_scan: Make, assert_agrees: Check, dtype: torch.dtype
) -> None:
    tensors = random_scan((1, 3, 20, 4))
    del tensors["A_b"]
    eps = torch.finfo(dtype).eps
    assert_agrees(
        selective_scan,
        tensors,
        backend="triton",
        dtype=dtype,
        tolerance=eps,
        reverse=True,
        delta_softplus=True,
    )


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_conv(with_bias: bool, reverse: bool) -> None:
    inputs = [torch.randn(2, 9, 33).transpose(1, 2), torch.randn(33, 4)]
    inputs += [torch.randn(33)] if with_bias else []
    dout = torch.randn(2, 33, 9)
    results = []
    for backend, dtype in (("triton", torch.float32), ("torch", torch.float64)):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
        bias = leaves[2] if with_bias else None
        out = causal_conv1d_silu(leaves[0], leaves[1], bias, reverse, backend)
        results.append([out, *torch.autograd.grad(out, leaves, dout.to(dtype))])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("with_residual", [False, True])
def test_norm(with_residual: bool) -> None:
    inputs = [torch.randn(3, 7, 20), torch.randn(20)]
    inputs += [torch.randn(3, 7, 20)] if with_residual else []
    ramp = torch.linspace(-1, 1, 20)
    results = []
    for backend, dtype in (("triton", torch.float32), ("torch", torch.float64)):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
        residual = leaves[2] if with_residual else None
        normed, total = rms_norm_residual(leaves[0], residual, leaves[1], 1e-5, backend)
        loss = (normed * ramp).sum() + total.square().sum()
        results.append([normed, total, *torch.autograd.grad(loss, leaves)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
