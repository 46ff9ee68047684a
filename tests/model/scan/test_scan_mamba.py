"""The identities that drive the stock mamba-ssm kernel, with our zero-start reference as kernel."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.scan import (
    ScanError,
    available_backends,
    bidirectional_scan,
    dispatch,
    mamba,
    selective_scan,
)
from model.scan.problem import Scan

Make = Callable[..., dict[str, Tensor]]


def _zero_start(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    return selective_scan(u, delta, A, B, C, backend="reference")


@pytest.mark.parametrize("first_token", [False, True])
@pytest.mark.parametrize("mask_current", [False, True])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("length", [1, 13])
def test_identities(
    random_scan: Make, length: int, separate: bool, mask_current: bool, first_token: bool
) -> None:
    tensors = random_scan((2, 3, length, 4), separate=separate, dtype=torch.float64)
    scan = Scan(**tensors, delta_softplus=True, first_token=first_token, mask_current=mask_current)
    found, _ = mamba.run(scan, _zero_start)
    expected = bidirectional_scan(
        **tensors,
        initial_state="first_token" if first_token else "zero",
        mask_backward=mask_current,
        backend="reference",
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    dout = torch.randn_like(expected)
    leaves = list(tensors.values())
    options = {"allow_unused": True, "materialize_grads": True}
    for a, b in zip(
        torch.autograd.grad(found, leaves, dout, **options),
        torch.autograd.grad(expected, leaves, dout, **options),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_asking_for_it_on_a_cpu_says_what_it_needs(random_scan: Make) -> None:
    with pytest.raises(ScanError, match=r"'mamba_ssm' cannot run on cpu here: it needs a CUDA"):
        bidirectional_scan(**random_scan((1, 3, 4, 2)), backend="mamba_ssm")


def test_float64_is_refused_in_one_line(random_scan: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "available_backends", lambda device: dispatch.BACKENDS)
    tensors = random_scan((1, 3, 4, 2), dtype=torch.float64)
    with pytest.raises(ScanError, match="'mamba_ssm' cannot compute in float64"):
        bidirectional_scan(**tensors, backend="mamba_ssm")


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("mamba_ssm") is None,
    reason="needs a GPU and mamba-ssm",
)
def test_the_real_kernel(random_scan: Make) -> None:
    tensors = {
        name: tensor.detach().cuda() for name, tensor in random_scan((2, 64, 50, 16)).items()
    }
    found = bidirectional_scan(**tensors, backend="mamba_ssm")
    expected = bidirectional_scan(**tensors, backend="reference")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("error", ["ImportError", "OSError", "RuntimeError"])
def test_a_package_that_is_found_and_does_not_load_is_no_backend(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "mamba_ssm" / "ops"
    package.mkdir(parents=True)
    for directory in (package, package.parent):
        (directory / "__init__.py").touch()
    interface = package / "selective_scan_interface.py"
    interface.write_text(f"raise {error}('undefined symbol: c10_cuda')\n")
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface"):
        # Set and then removed, so that undoing also removes what the test itself imports.
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = importlib.util.find_spec("mamba_ssm")
    assert spec is not None
    assert str(spec.origin).startswith(str(tmp_path))
    assert mamba.why_unavailable() == f"{error}: undefined symbol: c10_cuda"
    dispatch._has_mamba.cache_clear()
    assert "mamba_ssm" not in available_backends("cuda")
    monkeypatch.setattr(mamba, "kernel", lambda: None)
    dispatch._has_mamba.cache_clear()
    assert "mamba_ssm" in available_backends("cuda")
    dispatch._has_mamba.cache_clear()
