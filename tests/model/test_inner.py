"""The mixer's own backward pass gives the values and gradients of the plain composition."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from model import ModelConfig
from model.inner import fused_backends
from model.mixer import Mixer
from model.scan import available_backends
from model.scan.cuda import launch
from tests.model.scan.cuda_host import host_kernels
from tests.poison import poisoned

VARIANTS: list[dict[str, Any]] = [
    {"layout": layout, "value": value}
    for layout in ("shared", "separate")
    for value in ("conv", "raw")
]
VARIANTS += [{"initial_state": "zero", "mask_backward": False}]
VARIANTS += [{"direction": "forward", "value": value} for value in ("conv", "raw")]
BACKENDS = [("cuda", "cuda")] + ([("cpu", "cpu")] if "cpu" in available_backends() else [])


@pytest.fixture(autouse=True)
def kernels_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CUDA kernels run lane by lane, and fresh memory is NaN."""
    monkeypatch.setattr(launch, "load", host_kernels.load)
    with poisoned():
        yield


def _mixer(**fields: Any) -> Mixer:
    config = ModelConfig(embed_dim=12, depth=1, img_size=32, num_frames=2, **fields)
    torch.manual_seed(0)
    mixer = Mixer(config)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return mixer


def _results(mixer: Mixer, xz: Tensor, backends: tuple[str, str] | None) -> dict[str, Tensor]:
    leaf = xz.detach().requires_grad_()
    out = mixer.compose(leaf) if backends is None else mixer._inner(leaf, *backends)
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    unused = ("in_proj.weight", "out_proj.weight")
    named = {n: p for n, p in mixer.named_parameters() if n not in unused} | {"xz": leaf}
    grads = torch.autograd.grad(out, list(named.values()), dout)
    return {"out": out.detach()} | dict(zip(named, grads, strict=True))


@pytest.mark.parametrize("backends", BACKENDS)
@pytest.mark.parametrize("fields", VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_equals_the_composition(
    backends: tuple[str, str], fields: dict[str, Any], dtype: torch.dtype
) -> None:
    mixer = _mixer(**fields)
    xz = torch.randn(2, 35, 48).to(dtype)
    double = {name: t.double() for name, t in mixer.state_dict().items()}
    exact = _mixer(**fields, scan_backend="reference").double()
    exact.load_state_dict(double)
    expected = _results(exact, xz.double(), None)
    found = _results(mixer, xz, backends)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        composed = _results(mixer, xz, None)
    for name, value in expected.items():
        assert found[name].dtype == (dtype if name in ("out", "xz") else torch.float32)
        largest = float(value.abs().max())
        error, error_composed = (
            float((results[name].double() - value).abs().max()) for results in (found, composed)
        )
        # As exact as an operator at a time, which rounds more often.
        slack = (2e-6 if dtype == torch.float32 else torch.finfo(dtype).eps / 2) * largest
        assert error <= 1.5 * error_composed + slack, (name, error, error_composed, largest)


@pytest.mark.parametrize("backends", BACKENDS)
def test_no_gradient_is_concatenated(backends: tuple[str, str]) -> None:
    mixer, xz = _mixer(), torch.randn(2, 35, 48, requires_grad=True)

    def concatenations(out: Tensor) -> int:
        with torch.profiler.profile() as profile:
            torch.autograd.grad(out.sum(), xz)
        return len([event for event in profile.events() if event.name == "aten::cat"])

    # The C++ convolution joins the gradients of its weight and bias, which are small.
    assert concatenations(mixer._inner(xz, *backends)) == (backends[1] == "cpu")
    assert concatenations(mixer.compose(xz)) >= 2


def test_when_it_is_used() -> None:
    config = _mixer().config
    xz = torch.randn(2, 35, 48, requires_grad=True)
    if "cpu" in available_backends():
        assert fused_backends(xz, config) == ("cpu", "cpu")
        assert fused_backends(xz, config.model_copy(update={"scan_backend": "chunked"})) == (
            *("chunked", "cpu"),
        )
    assert fused_backends(xz, config.model_copy(update={"scan_backend": "reference"})) is None
    assert fused_backends(xz.double(), config) is None
    assert fused_backends(xz.detach(), config) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert fused_backends(xz, config) is None
        half = xz.bfloat16()
        assert (fused_backends(half, config) is None) == ("cpu" not in available_backends())
    with torch.no_grad():
        assert fused_backends(xz, config) is None
