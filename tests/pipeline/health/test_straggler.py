"""Who is slow, from times that are not equal by construction. The real thing: tests/dist."""

from __future__ import annotations

from pipeline.health.straggler import OwnTime, straggler


def test_the_slowest_rank_is_named_with_its_host_and_what_takes_its_time() -> None:
    times = [OwnTime(0.1, 0.2), OwnTime(0.1, 0.22), OwnTime(0.4, 0.2), OwnTime(0.1, 0.21)]
    line = straggler(times, ["a", "a", "b", "b"], factor=1.5)
    assert line is not None
    assert "rank 2 on b needs 0.6 s" in line
    assert "0.4 s for data" in line
    assert "median rank 0.31 s" in line


def test_ranks_within_the_factor_and_a_rank_alone_are_no_news() -> None:
    assert straggler([OwnTime(0.1, 0.2), OwnTime(0.1, 0.3)], ["a", "b"], factor=1.5) is None
    assert straggler([OwnTime(5.0, 5.0)], ["a"], factor=1.5) is None


def test_one_of_two_ranks_can_lag_behind() -> None:
    line = straggler([OwnTime(0.0, 0.1), OwnTime(0.0, 0.16)], ["a", "b"], factor=1.5)
    assert line is not None
    assert line.startswith("straggler: rank 1 on b")
