import pytest
import torch
from torch import Tensor

from model import ModelError, VideoMamba, create_model


def _net(rate: float = 0.5, depth: int = 3) -> VideoMamba:
    torch.manual_seed(0)
    net = create_model("videomambapro-tiny-test", depth=depth, drop_path_rate=rate)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return net


def _clip(batch: int) -> Tensor:
    return torch.randn(batch, 3, 4, 16, 16, generator=torch.Generator().manual_seed(1))


def _by_hand(net: VideoMamba, clip: Tensor, keep: Tensor) -> Tensor:
    """residual + mixer(norm(residual)) / (1 - rate) for kept blocks, one sample at a time."""
    logits = []
    for sample, kept in zip(clip.split(1), keep.tolist(), strict=True):
        residual = net._embed(sample)
        for block, rate, is_kept in zip(net.layers, net.drop_path_rates, kept, strict=True):
            if is_kept:
                normed, _ = block.norm(residual, None)
                residual = residual + block.mixer(normed) / (1 - rate)
        logits.append(net.head(net.norm_f(residual, None)[0][:, 0]))
    return torch.cat(logits)


def test_kept_blocks_are_scaled_and_dropped_ones_vanish() -> None:
    net = _net()
    assert net.drop_path_rates == (0.0, 0.25, 0.5)
    keep = torch.tensor(
        [[True, True, True], [True, False, True], [True, True, False], [True, False, False]]
    )
    torch.testing.assert_close(net(_clip(4), keep), _by_hand(net, _clip(4), keep))


def test_a_sample_does_not_feel_its_batch() -> None:
    net = _net()
    keep = torch.tensor([[True, False, True], [True, True, False], [True, True, True]])
    together = net(_clip(3), keep)
    alone = torch.cat([net(_clip(3)[i : i + 1], keep[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)


def test_without_a_choice_training_draws_from_torch_and_evaluation_keeps_all() -> None:
    net, clip = _net(), _clip(8)
    torch.manual_seed(5)
    keep = torch.rand(8, 3) < torch.tensor([1.0, 0.75, 0.5])
    assert not keep.all()
    torch.manual_seed(5)
    torch.testing.assert_close(net.train()(clip), net(clip, keep))

    whole = create_model(net.config, drop_path_rate=0.0)
    whole.load_state_dict(net.state_dict())
    assert torch.equal(net.eval()(clip), whole(clip))


def test_rate_zero_draws_nothing() -> None:
    net = _net(rate=0.0).train()
    state = torch.get_rng_state()
    net(_clip(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_choice_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ModelError, match=r"expected \(batch, depth\) = \(2, 3\)"):
        _net()(_clip(2), torch.ones(2, 4, dtype=torch.bool))
