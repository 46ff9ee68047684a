"""The models of distillation and masked pre-training, next to the plain one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model import VideoMamba, resolve_config
from model.config import ModelConfig
from model.distilled import DistilledVideoMamba
from model.masked import MaskedVideoMamba, position_table, select

SHARED = resolve_config("videomambapro-tiny-test")
SEPARATE = resolve_config(SHARED, layout="separate", mask_backward=False, initial_state="zero")
MIDDLE = resolve_config(SHARED, class_token="middle", pooling="mean")
CAUSAL = resolve_config(SHARED, direction="forward", mask_backward=False)
LAST = SHARED.depth - 1


def a_clip() -> Tensor:
    return torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(1))


def gradients(net: torch.nn.Module, loss: Tensor) -> dict[str, float]:
    loss.backward()  # type: ignore[no-untyped-call]
    return {n: 0.0 if p.grad is None else float(p.grad.norm()) for n, p in net.named_parameters()}


def some_loss(output: Tensor) -> Tensor:
    return (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(2))).sum()


@pytest.mark.parametrize("config", [SHARED, MIDDLE, CAUSAL], ids=["shared", "middle", "causal"])
@pytest.mark.parametrize("width", [SHARED.embed_dim, 24])
def test_a_student_gives_the_logits_of_the_plain_model(width: int, config: ModelConfig) -> None:
    plain, student = VideoMamba(config), DistilledVideoMamba(config, width)
    missing, extra = student.load_state_dict(plain.state_dict(), strict=False)
    expected = [] if width == SHARED.embed_dim else ["0.weight", "1.weight", "1.bias"]
    assert (missing, extra) == ([f"distill_head.{name}" for name in expected], [])
    logits, tokens = student(a_clip(), features=True)
    assert tokens.shape == (2, SHARED.num_tokens, width)
    torch.testing.assert_close(logits, plain(a_clip()))
    torch.testing.assert_close(student(a_clip()), plain(a_clip()))
    if width == SHARED.embed_dim:
        torch.testing.assert_close(tokens, plain.tokens(a_clip()))


def test_the_norm_of_the_projection_is_not_decayed() -> None:
    student = DistilledVideoMamba(SHARED, 24)
    own = student.no_weight_decay() - VideoMamba(SHARED).no_weight_decay()
    assert own == {"distill_head.0.weight", "distill_head.1.bias"}


@pytest.mark.parametrize("config", [SHARED, SEPARATE, MIDDLE], ids=["shared", "separate", "middle"])
def test_every_parameter_of_masked_pre_training_gets_a_gradient(config: ModelConfig) -> None:
    net = MaskedVideoMamba(config, 24)
    visible = torch.tensor([[0, 3, 5, 6, 9, 15]] * 2)
    found = gradients(net, some_loss(net(a_clip(), visible=visible)))
    assert [name for name, size in found.items() if size == 0] == []
    assert "head.weight" not in found


def test_parity_trains_neither_the_last_block_nor_the_final_norm() -> None:
    net = MaskedVideoMamba(SHARED, 24, before_last_mixer=True)
    found = gradients(net, some_loss(net(a_clip(), visible=torch.tensor([[0, 3, 5]] * 2))))
    untrained = {name for name, size in found.items() if size == 0}
    last_block = {name for name in found if name.startswith(f"layers.{LAST}.")}
    assert untrained == last_block | {"norm_f.weight"}


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_the_model_sees_the_visible_patches_alone(place: str) -> None:
    """P = 4 patches of 8 x 8 pixels per frame; patch 5 is the second of the second frame."""
    net = MaskedVideoMamba(resolve_config(SHARED, class_token=place), 24).eval()
    visible = torch.tensor([[0, 5]] * 2)
    seen, hidden = a_clip(), a_clip()
    hidden[:, :, 1, 8:, :] += 1  # patches 6 and 7
    seen[:, :, 1, :8, 8:] += 1  # patch 5
    before = net(a_clip(), visible=visible)
    assert before.shape == (2, 3, 24)
    assert torch.equal(net(hidden, visible=visible), before)
    assert not torch.allclose(net(seen, visible=visible), before)
    everything = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(net(a_clip(), visible=everything), net(a_clip()))
    decoder = net.clip_decoder[0]
    positions = position_table(17, SHARED.embed_dim)
    if place == "first":  # the table is in the order of the sequence
        tokens = net.tokens(a_clip()) + positions
        predicted = decoder["norm"](decoder["head"](tokens))  # type: ignore[index]
        torch.testing.assert_close(net(a_clip()), predicted)


def test_selected_tokens_are_the_first_and_those_of_the_visible_patches() -> None:
    tokens = torch.arange(10.0).view(2, 5, 1)
    chosen = select(tokens, torch.tensor([[0, 3], [1, 2]]))
    assert chosen[..., 0].tolist() == [[0, 1, 4], [5, 7, 8]]


def test_positions_by_hand() -> None:
    table = position_table(3, 4)
    one = [0.841470985, 0.540302306, 0.009999833, 0.999950000]  # sin 1, cos 1, sin .01, cos .01
    torch.testing.assert_close(table[0], torch.tensor([0.0, 1.0, 0.0, 1.0]))
    torch.testing.assert_close(table[1], torch.tensor(one))
    assert position_table(3, 5).shape == (3, 5)
