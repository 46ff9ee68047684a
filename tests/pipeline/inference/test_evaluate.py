"""Evaluation on batches made by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.config import load_config
from pipeline.data.batch import Batch
from pipeline.inference.evaluate import EvalResult, evaluate


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
