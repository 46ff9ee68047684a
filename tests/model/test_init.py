import math

import pytest
import torch
from torch.nn import functional as F

from model import VideoMamba, create_model


@pytest.fixture(scope="module", params=["shared", "separate"])
def net(request: pytest.FixtureRequest) -> VideoMamba:
    torch.manual_seed(0)
    return create_model("videomambapro-ti", depth=4, layout=request.param)


def test_state_matrix_and_skip(net: VideoMamba) -> None:
    for block in net.layers:
        mixer = block.mixer
        ladder = torch.arange(1.0, 17.0).expand(384, 16)
        torch.testing.assert_close(mixer.A_log.exp(), ladder)
        torch.testing.assert_close(mixer.A_b_log.exp(), ladder)
        skips = [mixer.D] if net.config.layout == "shared" else [mixer.D, mixer.D_b]
        assert all((skip == 1).all() for skip in skips)


def test_step_sizes_are_log_uniform_between_a_thousandth_and_a_tenth(net: VideoMamba) -> None:
    names = ["dt_proj"] if net.config.layout == "shared" else ["dt_proj", "dt_proj_b"]
    for name in names:
        steps = torch.cat([F.softplus(getattr(b.mixer, name).bias) for b in net.layers])
        assert steps.min() >= 0.999e-3
        assert steps.max() <= 0.1001
        # A log-uniform draw has its quarters in equal shares; 1536 draws: sd 1.1 points.
        position = (steps.log() - math.log(1e-3)) / math.log(100)
        shares = torch.histc(position, 4, 0, 1) / len(steps)
        assert ((shares - 0.25).abs() < 0.06).all()
        weight = net.layers[0].mixer.get_submodule(name).weight
        assert weight.abs().max() <= 12**-0.5
        assert weight.abs().max() > 0.95 * 12**-0.5


def test_linear_layers_and_embeddings(net: VideoMamba) -> None:
    mixer = net.layers[0].mixer
    for weight in (mixer.in_proj.weight, mixer.x_proj.weight, net.head.weight, net.pos_embed):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert (net.head.bias == 0).all()
    assert (net.cls_token == 0).all()
    assert (net.temporal_pos_embedding == 0).all()
    assert all((block.norm.weight == 1).all() for block in net.layers)


def test_output_projection_shrinks_with_depth(net: VideoMamba) -> None:
    bound = 384**-0.5 / math.sqrt(4)
    weight = net.layers[0].mixer.out_proj.weight
    assert 0.99 * bound < weight.abs().max() <= bound
