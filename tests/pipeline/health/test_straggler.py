"""Finds the slow rank from made-up times; tests/dist does so with real ranks."""

from __future__ import annotations

import logging

import pytest
import torch

from pipeline.health.straggler import OwnTime, StragglerWatch, describe, straggler
from pipeline.training.distributed import World


def test_the_slowest_rank_is_named_with_its_host_and_what_takes_its_time() -> None:
    times = [OwnTime(0.1, 0.2), OwnTime(0.1, 0.22), OwnTime(0.4, 0.2), OwnTime(0.1, 0.21)]
    assert straggler(times, factor=1.5) == 2
    line = describe(2, times, ["a", "a", "b", "b"], factor=1.5)
    assert line.startswith("straggler: rank 2 on b needs 0.6 s")
    assert "0.4 s for data" in line
    assert "median rank 0.31 s" in line


def test_ranks_within_the_factor_and_a_rank_alone_are_no_news() -> None:
    assert straggler([OwnTime(0.1, 0.2), OwnTime(0.1, 0.3)], factor=1.5) is None
    assert straggler([OwnTime(5.0, 5.0)], factor=1.5) is None


def test_one_of_two_ranks_can_lag_behind() -> None:
    assert straggler([OwnTime(0.0, 0.1), OwnTime(0.0, 0.16)], factor=1.5) == 1


def test_a_rank_is_named_when_it_lags_again_and_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slow, even = [[0.1, 0.1], [0.5, 0.1]], [[0.1, 0.1], [0.1, 0.1]]
    tables = iter([slow, slow, even, slow, slow, slow, slow])
    monkeypatch.setattr(
        "pipeline.health.straggler.sum_over_ranks", lambda _: torch.tensor(next(tables))
    )
    watch = StragglerWatch(1.5, World(0, 2, 0, torch.device("cpu")), "a")
    watch._hosts = ["a", "b"]
    said = []
    with caplog.at_level(logging.WARNING):
        for _ in range(7):
            watch.compare(OwnTime(0.1, 0.1))
            said.append(len(caplog.records))
    assert said == [0, 0, 0, 0, 0, 1, 1]
