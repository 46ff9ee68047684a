"""The probes measure what they say, by an independent computation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model import VideoMamba, create_model
from pipeline.study.clips import Clips
from pipeline.study.design import Design, Settings, Unit
from pipeline.study.signal import Signal, probe
from pipeline.study.train import run_config
from pipeline.training.assemble import build_task

CLIPS = Clips(
    torch.randint(0, 256, (3, 3, 4, 16, 16), generator=torch.Generator().manual_seed(0)).byte(),
    torch.tensor([0, 1, 2]),
    classes=8,
    split="val",
)


def _model(design: Design, **options: str) -> tuple[VideoMamba, Signal]:
    unit = Unit(data="motion", arm=design.arms[0], role="seed", seed=0)
    config = run_config(unit, Settings(lr=1e-3, warmup=0), design, classes=8)
    torch.manual_seed(0)
    model = create_model(config.model, **options)
    task = build_task(config, torch.device("cpu"))
    (batch,) = CLIPS.in_order(3)
    return model, probe(model, task, batch)


def test_it_equals_the_jacobian_computed_row_by_row(design: Design) -> None:
    model, found = _model(design)
    before = torch.get_rng_state()
    tokens: list[Tensor] = []
    read: list[Tensor] = []
    model.patch_embed.register_forward_hook(lambda _, __, output: tokens.append(output))
    model.head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    from pipeline.data.batch import normalize
    from pipeline.data.config import DataConfig

    clips = normalize(
        CLIPS.pixels.unsqueeze(1), DataConfig(train="none").mean, DataConfig(train="none").std
    )
    logits = model(clips)
    rows = [
        torch.autograd.grad(read[0][:, i].sum(), tokens[0], retain_graph=True)[0]
        for i in range(read[0].shape[1])
    ]  # each (B, T, P, d)
    jacobian = torch.stack(rows, dim=1)  # (B, d, T, P, d)
    vectors = torch.randn(read[0].shape, generator=torch.Generator().manual_seed(0))
    product = torch.einsum("bi,bitpd->btpd", vectors, jacobian)
    expected = product.square().sum(dim=(2, 3)).mean(0).sqrt()
    torch.testing.assert_close(torch.tensor(found.by_frame), expected, rtol=1e-4, atol=1e-9)

    loss = torch.nn.functional.cross_entropy(logits, CLIPS.labels, label_smoothing=0.05)
    model.zero_grad()
    loss.backward()
    gradient = model.patch_embed.proj.weight.grad
    assert gradient is not None
    assert found.patch_gradient == pytest.approx(gradient.norm().item(), rel=1e-4)
    assert torch.equal(torch.get_rng_state(), before)


def test_it_leaves_the_model_as_it_was(design: Design) -> None:
    model, _ = _model(design)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.head._forward_pre_hooks
    assert not model.patch_embed._forward_hooks


def test_the_start_opens_a_path_to_the_frame_scanned_first(design: Design) -> None:
    """Backwards, that is the last frame, from which a zero start has decayed the most."""
    _, zero = _model(design)
    _, first = _model(design, initial_state="first_token")
    assert zero.by_frame[-1] < zero.by_frame[0]
    assert first.by_frame[-1] > 10 * zero.by_frame[-1]


def test_at_the_end_of_the_sequence_the_class_token_sees_the_last_frame_most(
    design: Design,
) -> None:
    _, found = _model(design, class_token="last")
    assert found.by_frame[-1] == max(found.by_frame)
