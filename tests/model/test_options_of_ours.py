"""Options that no published model has: off by default, equal in parameters, and doing as named."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from model import VideoMamba, create_model
from model.config import PRESETS
from model.errors import ModelConfigError
from model.readout import class_token_index

TINY = "videomambapro-tiny-test"
OPTIONS = [
    {"class_token": "middle"},
    {"class_token": "last"},
    {"pooling": "mean"},
    {"bc_init": "fan_in"},
    {"delta_init": "large"},
]


def _made(**options: str) -> VideoMamba:
    torch.manual_seed(0)
    return create_model(TINY, **options)


def _clip() -> torch.Tensor:
    return torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(1))


def test_published_models_use_none_of_them() -> None:
    assert all(config.unpublished == () for config in PRESETS.values())
    assert _made(pooling="mean", bc_init="fan_in").config.unpublished == ("pooling", "bc_init")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_parameters_are_the_published_ones_and_all_get_a_gradient(
    options: dict[str, str], layout: str
) -> None:
    net, published = _made(**options, layout=layout), _made(layout=layout)
    shapes = {name: value.shape for name, value in net.state_dict().items()}
    assert shapes == {name: value.shape for name, value in published.state_dict().items()}
    net(_clip()).square().sum().backward()
    for name, parameter in net.named_parameters():
        # In the last block, one direction reaches the token that is read with nothing but itself.
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0 or name.startswith("layers.1.mixer"), name


@pytest.mark.parametrize("options", OPTIONS[:3], ids=str)
def test_place_and_pooling_change_the_function_and_not_the_weights(options: dict[str, str]) -> None:
    net, published = _made(**options), _made()
    net.load_state_dict(published.state_dict())
    assert not torch.equal(net(_clip()), published(_clip()))


@pytest.mark.parametrize(("place", "index"), [("first", 0), ("middle", 8), ("last", 16)])
def test_the_head_reads_the_class_token_where_it_stands(place: str, index: int) -> None:
    net = _made(class_token=place)
    assert class_token_index(net.config) == index  # four frames of four patches
    seen: list[torch.Tensor] = []
    read: list[torch.Tensor] = []
    net.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net.head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    net(_clip())
    expected = (net.cls_token + net.pos_embed[:, :1])[0, 0]
    torch.testing.assert_close(seen[0][:, index], expected.expand(2, -1), rtol=0, atol=0)
    patches = torch.cat([seen[0][:, :index], seen[0][:, index + 1 :]], dim=1)
    torch.testing.assert_close(patches, net._embed(_clip())[:, class_places(index)])
    assert read[0].shape == (2, 32)


def class_places(index: int) -> list[int]:
    return [place for place in range(17) if place != index]


@pytest.mark.parametrize("options", OPTIONS[:3], ids=str)
def test_the_forward_direction_has_a_place_of_its_own(options: dict[str, str]) -> None:
    with pytest.raises(ModelConfigError, match="leave class_token and pooling at their defaults"):
        _made(**options, direction="forward")
    assert _made(direction="forward", bc_init="fan_in")(_clip()).shape == (2, 5)


def test_mean_pooling_reads_the_mean_of_all_normed_tokens() -> None:
    net = _made(pooling="mean")
    read: list[torch.Tensor] = []
    net.head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    normed: list[torch.Tensor] = []
    net.norm_f.register_forward_hook(lambda _, __, output: normed.append(output[0]))
    net(_clip())
    assert normed[0].shape == (2, 17, 32)
    torch.testing.assert_close(read[0], normed[0].mean(dim=1))


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_initial_scales(layout: str) -> None:
    torch.manual_seed(0)
    net = create_model(
        "videomambapro-ti", depth=2, layout=layout, bc_init="fan_in", delta_init="large"
    )
    names = [""] if layout == "shared" else ["", "_b"]
    for mixer in (block.mixer for block in net.layers):
        for name in names:
            x_proj = mixer.get_submodule(f"x_proj{name}").weight
            assert x_proj[12:].std().item() == pytest.approx(384**-0.5, rel=0.05)
            assert x_proj[:12].std().item() == pytest.approx(0.02, rel=0.05)  # the step's rows
            steps = F.softplus(mixer.get_submodule(f"dt_proj{name}").bias)
            assert steps.min() >= 0.999e-2
            assert steps.max() <= 1.001
            position = (steps.log() - math.log(1e-2)) / math.log(100)
            assert position.mean().item() == pytest.approx(0.5, abs=0.06)
