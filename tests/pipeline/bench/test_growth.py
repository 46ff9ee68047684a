"""`vmp bench order` and `vmp bench plan` run on small data sets; their figures are for people."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipeline.bench import order
from pipeline.bench.plan import bench_plan, measure


def _printed(*tables: object) -> str:
    out = io.StringIO()
    Console(file=out, width=120).print(*tables)
    return out.getvalue()


def test_planning_starting_and_sealing_cost_something() -> None:
    cost = measure(600)
    assert min(cost.plan_s, cost.job_start_s, cost.seal_s, cost.peak_gib) > 0


def test_a_row_per_number_of_videos() -> None:
    printed = _printed(bench_plan([300]))
    assert "ms per video" in printed
    assert " 300 " in printed


def test_the_order_is_measured_over_all_shards_and_over_a_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(order, "_alone", lambda measure, *arguments: measure(*arguments))
    printed = _printed(*order.bench_order([3000], []))
    assert printed.count("3,000") == 2
    assert "64 at a time" in printed


def test_the_index_is_measured_in_a_process_of_its_own() -> None:
    printed = _printed(*order.bench_order([], [2000]))
    assert "2,000" in printed
    assert "private MB" in printed
