"""Nodes that are not fit for a run; tests/dist/test_health.py does this with real ranks."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pipeline.errors import NodeFaultError
from pipeline.health.failure import classify, record_failure
from pipeline.health.preflight import Finding, Report, judge, low_space
from pipeline.rundir import StopClass

FIT = Report(0, "node1", 1000.0, [])


def test_fit_nodes_pass() -> None:
    judge([FIT, Report(1, "node2", 1059.0, [])], max_clock_skew_s=60)


def test_a_clock_that_is_off_names_its_host_and_by_how_much() -> None:
    reports = [FIT, Report(1, "node2", 1000.5, []), Report(2, "node3", 700.0, [])]
    with pytest.raises(NodeFaultError, match=r"node3: clock is -300.0 s off.*NTP") as caught:
        judge(reports, max_clock_skew_s=60)
    assert caught.value.ranks == {2}


def test_only_the_failing_rank_is_the_cause(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    fault = Finding("GPU 3 is gone")
    reports = [FIT, Report(1, "node2", 1000.0, [fault]), Report(2, "node2", 1000.0, [fault])]
    with pytest.raises(NodeFaultError) as caught:
        judge(reports, max_clock_skew_s=60)
    assert str(caught.value) == "preflight: node2: GPU 3 is gone"  # said once
    records = [record_failure(tmp_path, rank, caught.value) for rank in range(3)]
    assert [r.consequence for r in records] == [True, False, False]
    assert {r.stop_class for r in records} == {StopClass.NODE_FAULT}


def test_a_full_run_directory_is_no_fault_of_the_node(tmp_path: Path) -> None:
    full = Finding("run directory is full", disk_full=True)
    with pytest.raises(OSError, match="node1: run directory is full") as caught:
        judge([Report(0, "node1", 0.0, [Finding("and this"), full])], max_clock_skew_s=60)
    assert caught.value.errno == errno.ENOSPC
    assert classify(caught.value) is StopClass.DISK_FULL


def test_free_space(tmp_path: Path) -> None:
    assert low_space(tmp_path, 0) is None
    assert "GiB free, needs 1000000000.00" in str(low_space(tmp_path, 1e9))
    assert "cannot be used: No such file" in str(low_space(tmp_path / "gone", 0))
