"""Random scans, and the check that a backend agrees with the reference."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from model.scan.cuda import scan
from tests.poison import poisoned

Tensors = dict[str, Tensor]


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fill fresh tensors with NaN, so that an element that is never written shows."""
    with poisoned():
        assert torch.utils.deterministic.fill_uninitialized_memory
        assert torch.empty(1).isnan()
        yield


@pytest.fixture
def fresh_plans() -> Iterator[None]:
    """For a test that changes how scans are cut: no plan comes from before, and none stays."""
    prepared = (scan.prepare_forward, scan.prepare_backward)
    for plans in prepared:
        plans.cache_clear()
    yield
    for plans in prepared:
        plans.cache_clear()


@pytest.fixture(scope="session")
def random_scan() -> Callable[..., Tensors]:
    """Makes the tensors of a bidirectional scan; ``layout`` permutes what is contiguous."""

    def make(
        shape: tuple[int, int, int, int],
        *,
        separate: bool = False,
        gated: bool = True,
        layout: str = "token_major",
        delta_scale: float = 1.0,
        decay_scale: float = 1.0,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Tensors:
        batch, channels, length, size = shape
        generator = torch.Generator().manual_seed(seed)

        def sequence(rows: int) -> Tensor:
            if layout == "strided":
                wide = torch.randn((batch, length, 2 * rows + 3), generator=generator, dtype=dtype)
                return wide.transpose(1, 2)[:, 1 : 2 * rows + 1 : 2]
            if layout == "token_major":
                memory = torch.randn((batch, length, rows), generator=generator, dtype=dtype)
                return memory.transpose(1, 2)
            return torch.randn((batch, rows, length), generator=generator, dtype=dtype)

        def one_way(suffix: str) -> Tensors:
            return {
                f"u{suffix}": sequence(channels),
                f"delta{suffix}": sequence(channels) * delta_scale,
                f"B{suffix}": sequence(size),
                f"C{suffix}": sequence(size),
                f"D{suffix}": torch.randn(channels, generator=generator, dtype=dtype),
                f"delta_bias{suffix}": torch.randn(channels, generator=generator, dtype=dtype),
            }

        tensors = one_way("") | (one_way("_b") if separate else {})
        for name in ("A", "A_b"):
            decay = torch.rand((channels, size), generator=generator, dtype=dtype)
            tensors[name] = -decay * decay_scale
        if gated:
            tensors["z"] = sequence(channels)
        return {name: tensor.requires_grad_() for name, tensor in tensors.items()}

    return make


def _run(
    function: Callable[..., Tensor], tensors: Tensors, dout: Tensor, options: dict[str, Any]
) -> Tensors:
    """The output and every gradient of ``function`` for the output gradient ``dout``."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    out = function(**leaves, **options)
    # The first token of a masked scan reads nothing, so a scan of one token ignores A_b.
    grads = torch.autograd.grad(
        out, list(leaves.values()), dout.to(out.dtype), allow_unused=True, materialize_grads=True
    )
    return {"out": out.detach()} | dict(zip(leaves, grads, strict=True))


@pytest.fixture(scope="session")
def assert_agrees() -> Callable[..., None]:
    """Checks values and gradients of a backend against the float64 reference.

    An error may be ``tolerance`` of the largest expected value, or a few times the error that the
    reference itself makes in float32 (sums that cancel).
    """

    def check(
        function: Callable[..., Tensor],
        tensors: Tensors,
        *,
        backend: str,
        tolerance: float = 1e-5,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        # The truth is that of the values as the backend receives them; parameters stay float32.
        given = {
            name: tensor.detach().to(dtype) if tensor.dim() == 3 else tensor.detach()
            for name, tensor in tensors.items()
        }
        dout = torch.randn(given["u"].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        doubles = {name: tensor.double() for name, tensor in given.items()}
        singles = {name: tensor.float() for name, tensor in given.items()}
        reference = options | {"backend": "reference"}
        truth = _run(function, doubles, dout, reference)
        single = _run(function, singles, dout, reference)
        found = _run(function, given, dout, options | {"backend": backend})
        assert truth["out"].dtype == torch.float64
        for name, expected in truth.items():
            assert found[name].isfinite().all(), f"{name} is not finite"
            largest = float(expected.abs().max())
            slack = float((single[name].double() - expected).abs().max())
            error = float((found[name].double() - expected).abs().max())
            assert error <= tolerance * largest + 8 * slack + 1e-30, (name, error, largest, slack)

    return check
