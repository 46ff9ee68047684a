"""Why a run ended, when rank 0 says one thing and the cause lies elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import rundir
from pipeline.config import load_config
from pipeline.errors import NodeFaultError, NonFiniteError
from pipeline.health.failure import record_failure
from pipeline.rundir import End, State, StopClass
from pipeline.training import aftermath


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    config = load_config("demo", ["tracking.enabled=false"])
    (tmp_path / rundir.CONFIG_FILE).write_text(config.to_yaml())
    return tmp_path


def test_without_a_word_of_anybody_the_log_is_named(run_dir: Path) -> None:
    rundir.write_status(run_dir, State.RUNNING)
    assert aftermath.explain(run_dir) == "its ranks left no word; see the log"


def test_the_failure_of_another_rank_explains_what_rank_0_suffered(run_dir: Path) -> None:
    record_failure(run_dir, 1, NonFiniteError("loss is not finite at step 7"))
    record_failure(run_dir, 0, RuntimeError("Connection closed by peer"))
    rundir.write_status(
        run_dir, State.FAILED, End(StopClass.NODE_FAULT, "rank 0: a peer is gone"), exit_status=1
    )
    said = aftermath.explain(run_dir)
    assert said.startswith("non_finite: rank 1 on ")
    assert said.endswith("NonFiniteError: loss is not finite at step 7")
    status = rundir.read_status(run_dir)
    assert (status.state, status.stop_class) == (State.FAILED, StopClass.NON_FINITE)
    assert status.exit_status == 1


def test_a_run_that_stopped_by_itself_is_left_as_it_is(run_dir: Path) -> None:
    record_failure(run_dir, 1, NodeFaultError("late"))
    rundir.write_status(
        run_dir, State.STOPPED, End(StopClass.TIME_LIMIT, "the limit is near"), exit_status=75
    )
    assert aftermath.explain(run_dir) == "time_limit: the limit is near"
    assert rundir.read_status(run_dir).state is State.STOPPED


def test_settling_keeps_a_stop_resumable_and_does_not_overrule_rank_0(run_dir: Path) -> None:
    rundir.write_status(
        run_dir, State.STOPPED, End(StopClass.TIME_LIMIT, "the limit is near"), exit_status=75
    )
    aftermath.settle(run_dir, End(StopClass.TIME_LIMIT, "another word for it"))
    assert rundir.read_status(run_dir).reason == "the limit is near"
    aftermath.settle(run_dir, End(StopClass.CANCELLED, "scancel"))
    status = rundir.read_status(run_dir)
    assert (status.state, status.exit_status) == (State.STOPPED, 75)
    assert (status.stop_class, status.reason) == (StopClass.CANCELLED, "scancel")
