"""Evaluation on batches made by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from data_prep.schema import Manifest
from pipeline.config import load_config
from pipeline.data.batch import Batch
from pipeline.inference.evaluate import EvalResult, evaluate, predictions
from pipeline.inference.selection import is_test_split
from pipeline.training.progress import Progress


def batch(label: list[int], weight: list[float], views: int) -> Batch:
    return Batch(
        clips=torch.zeros(len(label), views, 3, 1, 2, 2, dtype=torch.uint8),
        label=torch.tensor(label),
        weight=torch.tensor(weight),
        epoch=torch.zeros(len(label), dtype=torch.int64),
        position=torch.arange(len(label)),
        keys=[str(number) for number in range(len(label))],
        bad=[],
    )


def run(answers: list[Tensor], *batches: Batch) -> EvalResult:
    given = iter(answers)
    return evaluate(
        lambda clips: next(given), batches, load_config("demo").data, torch.device("cpu")
    )


def test_probabilities_of_views_are_averaged_before_they_are_counted() -> None:
    # One view is sure of class 1, two lean to class 0: the mean says 1.
    logits = torch.tensor([[0.1, 0.0], [0.1, 0.0], [0.0, 9.0]])
    result = run([logits], batch([1], [1], views=3))
    mean = logits.softmax(-1).mean(0)
    assert result.top1 == 1.0
    assert result.loss == pytest.approx(-math.log(float(mean[1])))


def test_padding_counts_nothing() -> None:
    right, wrong = [9.0, 0.0, 0, 0, 0, 0], [0.0, 9.0, 0, 0, 0, 0]
    first, second = torch.tensor([right, right]), torch.tensor([wrong, right])
    batches = batch([0, 0], [1, 1], views=1), batch([0, 0], [1, 0], views=1)
    result = run([first, second], *batches)
    assert (result.num_samples, result.top1) == (3, pytest.approx(2 / 3))
    assert result.metrics()["num_samples"] == 3.0


def test_top5_counts_the_five_most_probable() -> None:
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1], [6.0, 5, 4, 3, 2, 1]])
    result = run([logits], batch([4, 5], [1, 1], views=1))
    assert (result.top1, result.top5) == (0.0, 0.5)


def test_an_empty_split_is_no_division_by_zero() -> None:
    assert run([]) == EvalResult(0.0, 0.0, 0.0, 0)


def test_no_figure_depends_on_how_samples_are_dealt_out() -> None:
    """Losses of very different size, whose float sum depends on its order."""
    scale = 10.0 ** torch.arange(-4, 5)[:, None]
    logits = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)) * scale
    label = [0, 1, 2] * 3
    whole = run([logits], batch(label, [1] * 9, views=1))
    order = [8, 0, 7, 1, 6, 2, 5, 3, 4]
    one = batch([label[i] for i in order], [1] * 9, views=1)._replace(position=torch.tensor(order))
    assert run([logits[order]], one) == whole


def test_a_video_that_could_not_be_read_is_not_predicted() -> None:
    given = batch([0, 1, 2], [1, 0, 1], views=2)
    config = load_config("demo").data
    (found,) = predictions(lambda clips: torch.zeros(6, 4), [given], config, torch.device("cpu"))
    assert found.position.tolist() == [0, 2]
    assert found.label.tolist() == [0, 2]
    torch.testing.assert_close(found.logits, torch.full((2, 4), math.log(0.25)))


def test_a_hopeless_answer_has_a_finite_loss() -> None:
    """A probability below the smallest float32 does not become zero on the way."""
    result = run([torch.tensor([[0.0, 200.0]])], batch([0], [1], views=1))
    assert result.loss == pytest.approx(200.0)


@pytest.mark.parametrize(
    ("format", "split", "test"),
    [
        ("csv", "val", False),
        ("csv", "test", True),
        ("folder", "Test_set", True),
        ("csv", "my_test", True),
        ("csv", "testlist01", True),
        ("csv", "contest", False),
        ("csv", "latest", False),
        ("ucf101", "val", True),  # the official test list, which sharding calls val
        ("hmdb51", "val", True),
        ("kinetics", "val", False),
    ],
)
def test_a_test_split_is_known(format: str, split: str, test: bool) -> None:
    manifest = Manifest(
        dataset="x", classes=("a",), splits={}, settings={"format": format}, shards=(),
        index_sha256="0" * 64,
    )  # fmt: skip
    assert is_test_split(manifest, split) is test


def test_a_test_split_never_chooses_the_best_weights() -> None:
    progress = Progress(step=10)
    progress.note_evaluation({"top1": 0.9}, "top1", chooses=False)
    assert (progress.best_step, progress.best_score, progress.evaluated_step) == (-1, -1.0, 10)
    progress.step = 20
    progress.note_evaluation({"top1": 0.2}, "top1", chooses=True)
    assert (progress.best_step, progress.best_score) == (20, 0.2)
