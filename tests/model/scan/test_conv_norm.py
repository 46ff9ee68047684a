"""The fused convolution and the fused residual norm agree with PyTorch's operators."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model.scan import ScanError, causal_conv1d_silu, rms_norm_residual
from model.scan.conv import conv_op
from model.scan.native import library
from model.scan.norm import norm_op

needs_compiler = pytest.mark.skipif(
    not library.is_available(), reason="no C++ compiler (apt-get install g++)"
)


def _compare(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(
            a.double(), b, rtol=0, atol=3e-6 * max(1.0, float(b.detach().abs().max()))
        )


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=needs_compiler)])
def test_conv_is_causal_and_reverse_is_its_mirror(backend: str) -> None:
    x, weight, bias = torch.randn(2, 5, 9), torch.randn(5, 1, 4), torch.randn(5)
    out = causal_conv1d_silu(x, weight, bias, backend=backend)
    later = x.clone()
    later[:, :, 4:] += 1.0
    changed = causal_conv1d_silu(later, weight, bias, backend=backend)
    assert torch.equal(out[:, :, :4], changed[:, :, :4])
    mirrored = causal_conv1d_silu(x.flip(-1), weight, bias, reverse=True, backend=backend)
    torch.testing.assert_close(mirrored.flip(-1), out)
    full = sum(weight[:, 0, k] * x[:, :, k] for k in range(4)) + bias
    torch.testing.assert_close(out[:, :, 3], torch.nn.functional.silu(full))


@needs_compiler
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("token_major", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", [(2, 33, 17, 4), (1, 64, 1, 4), (3, 5, 40, 2), (2, 32, 3, 1)])
def test_conv_gradients(
    shape: tuple[int, int, int, int], with_bias: bool, token_major: bool, reverse: bool
) -> None:
    batch, channels, length, taps = shape
    x = torch.randn(batch, channels, length)
    if token_major:
        x = torch.randn(batch, length, channels).transpose(1, 2)
    inputs = [x, torch.randn(channels, taps), *([torch.randn(channels)] if with_bias else [])]
    dout = torch.randn(batch, channels, length)
    results = []
    for backend, dtype in (("cpu", torch.float32), ("torch", torch.float64)):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
        bias = leaves[2] if with_bias else None
        out = causal_conv1d_silu(leaves[0], leaves[1], bias, reverse, backend)
        results.append([out, *torch.autograd.grad(out, leaves, dout.to(dtype))])
    _compare(*results)


@needs_compiler
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("shape", [(3, 7, 64), (2, 5, 33), (1, 1, 1), (40, 16)])
@pytest.mark.parametrize("with_residual", [False, True])
def test_norm_gradients(shape: tuple[int, ...], with_residual: bool) -> None:
    inputs = [torch.randn(shape), torch.randn(shape[-1:])]
    inputs += [torch.randn(shape)] if with_residual else []
    douts = [torch.randn(shape), torch.randn(shape)]
    results = []
    for backend, dtype in (("cpu", torch.float32), ("torch", torch.float64)):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
        residual = leaves[2] if with_residual else None
        outs = rms_norm_residual(leaves[0], residual, leaves[1], 1e-5, backend)
        grads = torch.autograd.grad(outs, leaves, [dout.to(dtype) for dout in douts])
        results.append([*outs, *grads])
    _compare(*results)


def test_norm_keeps_the_residual_stream_in_float32() -> None:
    x, weight = torch.randn(2, 8).bfloat16(), torch.ones(8)
    normed, total = rms_norm_residual(x, None, weight)
    assert (normed.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    again = rms_norm_residual(x, total, weight, backend="torch")[1]
    assert torch.equal(again, x.float() * 2)


@needs_compiler
def test_opchecks() -> None:
    x = torch.randn(2, 33, 9, requires_grad=True)
    weight, bias = torch.randn(33, 4, requires_grad=True), torch.randn(33, requires_grad=True)
    scale = torch.randn(9, requires_grad=True)
    for operator, arguments in (
        (conv_op, (x, weight, None, True, "cpu")),
        (conv_op, (x, weight, bias, False, "cpu")),
        (norm_op, (x, None, scale, 1e-5, "cpu")),
        (norm_op, (x, torch.randn(2, 33, 9, requires_grad=True), scale, 1e-5, "cpu")),
    ):
        assert set(torch.library.opcheck(operator, arguments).values()) == {"SUCCESS"}


def test_bad_arguments() -> None:
    x = torch.randn(2, 5, 9)
    with pytest.raises(ScanError, match=r"weight is \(4, 4\); x \(2, 5, 9\) asks for \(5, K\)"):
        causal_conv1d_silu(x, torch.randn(4, 4), None)
    with pytest.raises(ScanError, match="no backend 'gpu'"):
        causal_conv1d_silu(x, torch.randn(5, 4), None, backend="gpu")
    with pytest.raises(ScanError, match="the cpu kernel cannot run"):
        causal_conv1d_silu(x.double(), torch.randn(5, 4), None, backend="cpu")
    with pytest.raises(ScanError, match="weight must match"):
        rms_norm_residual(x, None, torch.randn(8))
    with pytest.raises(ScanError, match="no backend 'gpu'"):
        rms_norm_residual(x, None, torch.randn(9), backend="gpu")


@needs_compiler
def test_the_operators_give_what_eager_code_gets() -> None:
    x, stream = torch.randn(2, 9, 33).bfloat16(), torch.randn(2, 9, 33)
    parameters = [torch.randn(33, 4), torch.randn(33), torch.randn(33)]
    leaves = [tensor.requires_grad_() for tensor in (x, stream, *parameters)]

    def results() -> list[Tensor]:
        mixed = causal_conv1d_silu(leaves[0].transpose(1, 2), leaves[2], leaves[3])
        outs = rms_norm_residual(mixed.transpose(1, 2), leaves[1], leaves[4])
        return [*outs, *torch.autograd.grad(outs, leaves, [torch.ones_like(out) for out in outs])]

    with FlopCounterMode(display=False):  # a dispatch mode, which sees operators
        watched = results()
    assert all(torch.equal(a, b) for a, b in zip(watched, results(), strict=True))
