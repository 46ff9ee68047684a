"""The Triton kernels compute what the reference computes, under Triton's interpreter.

Triton must be imported with TRITON_INTERPRET=1, so test_scan_triton.py runs this in a process of
its own; `TRITON_INTERPRET=1 pytest` on this file does the same.
"""

import pytest
import torch

from model.scan import causal_conv1d_silu, rms_norm_residual


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
