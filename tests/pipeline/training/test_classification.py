"""The objective on a batch made by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config import load_config
from pipeline.data.batch import Batch
from pipeline.training.tasks.classification import ClassificationTask

VIEWS, CLASSES = 2, 3
LOGITS = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 3, 0], [0, 0, 1]])


def batch(weight: list[float]) -> Batch:
    return Batch(
        clips=torch.full((2, VIEWS, 3, 1, 2, 2), 128, dtype=torch.uint8),
        label=torch.tensor([0, 1]),
        weight=torch.tensor(weight),
        epoch=torch.zeros(2, dtype=torch.int64),
        position=torch.arange(2),
        keys=["a", "b"],
        bad=[],
    )


def task(smoothing: float = 0.0, *overrides: str) -> ClassificationTask:
    config = load_config("demo", [f"loss.label_smoothing={smoothing}", *overrides])
    return ClassificationTask(config, torch.device("cpu"))


def answer(clips: Tensor, drop_path_keep: Tensor | None) -> Tensor:
    assert clips.shape == (2 * VIEWS, 3, 1, 2, 2)
    assert drop_path_keep is None
    return LOGITS


def test_every_view_counts_for_its_label() -> None:
    loss, report = task()(answer, batch([1, 1]))
    expected = F.cross_entropy(LOGITS, torch.tensor([0, 0, 1, 1]), reduction="none")
    assert float(loss) == pytest.approx(float(expected.mean()))
    assert float(report.sums["loss"]) == pytest.approx(float(expected.sum()))
    assert (float(report.sums["top1"]), float(report.weight)) == (2.0, 4.0)


def test_a_sample_without_weight_counts_in_the_divisor_only() -> None:
    loss, report = task()(answer, batch([1, 0]))
    expected = F.cross_entropy(LOGITS[:2], torch.tensor([0, 0]), reduction="sum")
    assert float(loss) == pytest.approx(float(expected) / 4)
    assert (float(report.sums["top1"]), float(report.weight)) == (1.0, 2.0)


def test_smoothing_is_that_of_torch() -> None:
    loss, _ = task(smoothing=0.2)(answer, batch([1, 1]))
    label = torch.tensor([0, 0, 1, 1])
    assert float(loss) == pytest.approx(float(F.cross_entropy(LOGITS, label, label_smoothing=0.2)))


def test_dropped_paths_depend_on_key_and_view_not_on_the_place_in_the_batch() -> None:
    kept: list[Tensor] = []

    def remember(clips: Tensor, drop_path_keep: Tensor) -> Tensor:
        kept.append(drop_path_keep)
        return LOGITS

    paths = task(0.0, "model.depth=40", "model.drop_path_rate=0.9")
    first = batch([1, 1])
    paths(remember, first)
    paths(remember, first._replace(keys=["b", "a"]))
    assert kept[0].shape == (4, 40)
    assert torch.equal(kept[0][:2], kept[1][2:])
    assert torch.equal(kept[0][2:], kept[1][:2])
    assert not torch.equal(kept[0][0], kept[0][1])
    assert 0.35 < float(kept[0].float().mean()) < 0.75  # 0.55 is expected


@pytest.mark.parametrize(("steps", "counted"), [(1, [0]), (2, [1]), (3, [1, 2]), (4, [2, 3])])
def test_of_a_forward_model_the_later_half_of_the_steps_counts(
    steps: int, counted: list[int]
) -> None:
    answers = torch.randn(4, steps, CLASSES, generator=torch.Generator().manual_seed(0))
    answers[:, -1] = LOGITS

    def each_step(clips: Tensor, drop_path_keep: Tensor | None, every_step: bool) -> Tensor:
        assert every_step
        return answers

    loss, report = task(0.0, "model.direction=forward")(each_step, batch([1, 1]))
    label = torch.tensor([0, 0, 1, 1])
    expected = [float(F.cross_entropy(answers[:, step], label)) for step in counted]
    assert float(loss) == pytest.approx(sum(expected) / len(counted))
    assert float(report.sums["top1"]) == 2.0  # of the last step
