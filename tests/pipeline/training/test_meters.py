"""What a row of metrics is made of."""

from __future__ import annotations

import pytest
import torch

from pipeline.training.meters import Meters
from pipeline.training.tasks.task import Report

CPU = torch.device("cpu")


def report(loss: float, correct: float, weight: float) -> Report:
    return Report(torch.tensor(weight), {"loss": torch.tensor(loss), "top1": torch.tensor(correct)})


def test_means_are_over_the_clips_that_count_not_over_the_calls() -> None:
    meters = Meters(CPU)
    meters.add(report(6.0, 1.0, 3.0))
    meters.add(report(4.0, 1.0, 1.0))
    meters.count_step()
    values = meters.flush()
    assert (values["loss"], values["top1"]) == (2.5, 0.5)
    assert values["clips_per_s"] * values["step_s"] == pytest.approx(4.0)


def test_gradient_norms_are_those_of_the_steps_that_were_applied() -> None:
    meters = Meters(CPU)
    for norm in (1.0, 3.0):
        meters.add_grad_norm(norm)
        meters.count_step()
    meters.count_step()  # skipped: its norm is no number
    values = meters.flush()
    assert (values["grad_norm"], values["grad_norm_max"]) == (2.0, 3.0)


def test_a_flush_begins_anew() -> None:
    meters = Meters(CPU)
    meters.add(report(6.0, 1.0, 3.0))
    meters.add_grad_norm(1.0)
    with meters.span("data"):
        pass
    meters.count_step()
    assert meters.flush()["data_wait_s"] > 0
    values = meters.flush()
    assert values["data_wait_s"] == 0.0
    assert not {"loss", "top1", "grad_norm"} & values.keys()  # of no clip at all


def test_own_time_is_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 4.0, 9.0, 10.0, 10.0])
    monkeypatch.setattr("pipeline.training.meters.time.perf_counter", lambda: next(clock))
    meters = Meters(CPU)  # 0
    with meters.span("data"):  # 1 to 3
        pass
    with meters.device_span("forward"):  # 4 to 9
        pass
    meters.count_step()
    meters.count_step()
    values = meters.flush()  # at 10
    assert meters.own_time == (1.0, 2.5)
    assert (values["data_wait_share"], values["data_wait_s"]) == (0.2, 1.0)
