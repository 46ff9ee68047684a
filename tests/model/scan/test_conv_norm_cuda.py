"""The CUDA convolution and norm agree with PyTorch's operators, run lane by lane on the CPU."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from model.scan.conv import conv_reference
from model.scan.cuda import conv, launch, norm
from model.scan.cuda.compile import ARCHITECTURES, build_cubin, resources, why_unavailable
from model.scan.norm import norm_reference
from tests.model.scan.cuda_host import host_kernels

pytestmark = pytest.mark.usefixtures("poisoned_memory", "kernels_on_the_cpu")
HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, *HALF)


@pytest.fixture(scope="module")
def kernels_on_the_cpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "load", host_kernels.load)
        yield


def _assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Check that values agree within the rounding of ``dtype`` and of sums in float32."""
    eps = max(torch.finfo(dtype).eps / 2, 3e-6)
    largest = float(expected.detach().abs().max())
    torch.testing.assert_close(found.double(), expected, rtol=1.01 * eps, atol=1e-5 * largest)


def _rows(shape: tuple[int, int, int], dtype: torch.dtype, layout: str) -> Tensor:
    """A (B, D, L) tensor: dense by tokens, a column slice of wider rows, or dense by channels."""
    batch, channels, length = shape
    if layout == "channel_major":
        return torch.randn(shape).to(dtype)
    if layout == "half":
        wide = torch.randn(batch, length, 2 * channels).to(dtype)
        return wide[..., channels:].transpose(1, 2)
    if layout == "unaligned":
        wide = torch.randn(batch, length, channels + 3).to(dtype)
        return wide[..., 1 : channels + 1].transpose(1, 2)
    return torch.randn(batch, length, channels).to(dtype).transpose(1, 2)


def _check_conv(
    shape: tuple[int, int, int], taps: int, dtype: torch.dtype, layout: str, **options: bool
) -> None:
    reverse = options.get("reverse", False)
    x, dout = _rows(shape, dtype, layout), _rows(shape, dtype, layout)
    parameter_dtype = dtype if options.get("half_parameters") else torch.float32
    weight = torch.randn(shape[1], taps).to(parameter_dtype)
    bias = torch.randn(shape[1]).to(parameter_dtype) if options.get("with_bias", True) else None
    leaves = [t.double().requires_grad_() for t in (x, weight, bias) if t is not None]
    expected = conv_reference(
        leaves[0], leaves[1], leaves[2] if bias is not None else None, reverse
    )
    wanted = torch.autograd.grad(expected, leaves, dout.double())

    _assert_close(conv.forward(x, weight, bias, reverse), expected, dtype)
    dx, dparameters = conv.backward(dout, x, weight, bias, reverse)
    assert dx.dtype == dtype
    _assert_close(dx, wanted[0], dtype)
    dweight, dbias = dparameters.split([weight.numel(), shape[1]])
    _assert_close(dweight.view_as(weight), wanted[1], torch.float32)
    if bias is not None:
        _assert_close(dbias, wanted[2], torch.float32)
    again = conv.backward(dout, x, weight, bias, reverse)
    assert all(torch.equal(a, b) for a, b in zip((dx, dparameters), again, strict=True))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["dense", "half", "unaligned", "channel_major"])
def test_conv_of_every_dtype_and_layout(dtype: torch.dtype, layout: str, reverse: bool) -> None:
    for channels, length in ((136, 70), (33, 21), (4, 1)):
        _check_conv((2, channels, length), 4, dtype, layout, reverse=reverse)


@pytest.mark.parametrize("taps", [1, 2, 3, 4, 6])
def test_conv_of_every_number_of_taps_and_tokens(taps: int) -> None:
    """Sequences of one token and more cross the borders of groups and segments, both ways."""
    lengths = (1, 2, 3, 4, 5, 13, 14, 61, 62, 63, 130)
    for length, reverse in itertools.product(lengths, (False, True)):
        _check_conv((1, 8, length), taps, torch.bfloat16, "dense", reverse=reverse)


@pytest.mark.parametrize("dtype", HALF)
def test_conv_of_parameters(dtype: torch.dtype) -> None:
    for with_bias, half_parameters in itertools.product((False, True), (False, True)):
        _check_conv(
            (1, 8, 30), 4, dtype, "dense", with_bias=with_bias, half_parameters=half_parameters
        )


def test_conv_writes_into_half_of_a_buffer() -> None:
    x, dout = (_rows((2, 8, 30), torch.bfloat16, "half") for _ in range(2))
    weight = torch.randn(8, 4)
    buffer = torch.full((2, 30, 16), 7.0, dtype=torch.bfloat16)
    written, _ = conv.backward(dout, x, weight, None, True, buffer[..., :8].transpose(1, 2))
    assert written.data_ptr() == buffer.data_ptr()
    dense, _ = conv.backward(dout, x, weight, None, True)
    assert torch.equal(buffer[..., :8].transpose(1, 2), dense)
    assert bool((buffer[..., 8:] == 7.0).all())


def test_conv_of_many_samples_has_long_segments() -> None:
    """Longer segments, which are used once there are enough of them, give the same results."""
    _check_conv((24, 520, 200), 4, torch.bfloat16, "dense")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [3, 33, 64, 576, 640, 1024])
def test_norm(dtype: torch.dtype, columns: int) -> None:
    for rows, with_residual, with_dtotal in itertools.product(
        (1, 5, 131), (False, True), (False, True)
    ):
        x = torch.randn(rows, columns).to(dtype)
        residual = torch.randn(rows, columns) if with_residual else None
        weight = torch.randn(columns).to(dtype if rows == 5 else torch.float32)
        dnormed = torch.randn(rows, columns).to(dtype)
        dtotal = torch.randn(rows, columns) if with_dtotal else torch.zeros(rows, columns)
        leaves = [t.double().requires_grad_() for t in (x, weight, residual) if t is not None]
        expected = norm_reference(leaves[0], leaves[2] if with_residual else None, leaves[1], 1e-5)
        wanted = torch.autograd.grad(expected, leaves, [dnormed.double(), dtotal.double()])

        normed, total = norm.forward(x, residual, weight, 1e-5)
        assert (normed.dtype, total.dtype) == (dtype, torch.float32)
        _assert_close(normed, expected[0], dtype)
        _assert_close(total, expected[1], torch.float32)
        arguments = (dnormed, dtotal if with_dtotal else None, total, weight, 1e-5)
        dresidual, dx, dweight = norm.backward(*arguments)
        _assert_close(dresidual, wanted[0], torch.float32)
        if dtype == torch.float32:
            assert dx.numel() == 0
        else:
            _assert_close(dx, wanted[0], dtype)
        _assert_close(dweight, wanted[1], torch.float32)
        again = norm.backward(*arguments)
        assert all(torch.equal(a, b) for a, b in zip((dresidual, dx, dweight), again, strict=True))


def test_norm_of_unaligned_rows() -> None:
    x = torch.randn(131 * 64 + 1).bfloat16()[1:].view(131, 64)
    assert x.data_ptr() % 8 == 2
    normed, total = norm.forward(x, None, torch.ones(64), 1e-5)
    expected = norm_reference(x.double(), None, torch.ones(64).double(), 1e-5)
    _assert_close(normed, expected[0], torch.bfloat16)
    _assert_close(total, expected[1], torch.float32)


def test_what_fits_into_a_warp() -> None:
    assert [norm.fits(columns) for columns in (1024, 1028, 640, 639, 641)] == [
        *(True, False, True, True, False)
    ]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, tuple]]:
    """Records the variants that are asked for, and runs none."""
    variants: set[tuple[str, tuple]] = set()

    class Nothing:
        def launch(self, *arguments: object) -> None:
            pass

    def load(source: str, macros: dict, device: torch.device) -> Nothing:
        variants.add((source, tuple(macros.items())))
        return Nothing()

    monkeypatch.setattr(launch, "load", load)
    return variants


@pytest.mark.skipif(why_unavailable() is not None, reason="no NVRTC")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_variants_compile_without_spills(
    launched: set[tuple[str, tuple]], architecture: str
) -> None:
    for dtype, channels in itertools.product(DTYPES, (1152, 33)):
        x = _rows((1, channels, 8), dtype, "dense")
        for parameters in {dtype, torch.float32}:
            conv.forward(x, torch.ones(channels, 4, dtype=parameters), None, False)
    for dtype, columns in itertools.product(DTYPES, (192, 384, 576, 768, 1024, 639)):
        norm.forward(torch.ones(1, columns, dtype=dtype), None, torch.ones(columns), 1e-5)
    for source, macros in sorted(launched):
        found = resources(build_cubin(source, dict(macros), architecture))
        assert len(found) == 2
        for kernel in found:
            spills = (kernel.stack, kernel.spill_stores, kernel.spill_loads)
            assert spills == (0, 0, 0), (kernel, macros)
