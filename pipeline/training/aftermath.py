"""Record why a run ended when its own ranks could not do so themselves."""

from __future__ import annotations

from pathlib import Path

from pipeline import exits, rundir
from pipeline.config import read_config
from pipeline.rundir import End, State, attempt_id
from pipeline.tracking import Tracker

_DELIVER_S = 20.0


def explain(run_dir: Path) -> str:
    """Return why the ranks ended: rank 0's own reason, or the failure elsewhere that caused it.

    A failure elsewhere is also written to status.json. Call this once all ranks are gone.
    """
    status = rundir.read_status(run_dir)
    stop_class, reason = status.stop_class, status.reason
    failure = rundir.first_failure(run_dir, status.attempt)
    if (
        failure is not None
        and status.state in (State.RUNNING, State.FAILED)
        and stop_class is not failure.stop_class
    ):
        stop_class, reason = failure.stop_class, str(failure)
        exit_status = exits.FAILED if status.exit_status is None else status.exit_status
        end = End(stop_class, reason)
        rundir.write_status(run_dir, State.FAILED, end, exit_status=exit_status)
    if stop_class is None:
        return "its ranks left no word; see the log"
    return f"{stop_class}: {reason}"


def settle(run_dir: Path, end: End) -> None:
    """Record the end in status.json and in the MLflow run, unless rank 0 has done so."""
    status = rundir.read_status(run_dir).of_attempt(attempt_id())
    if status.exit_status is not None and status.stop_class is end.stop_class:
        return
    stopped = status.state is State.STOPPED
    rundir.write_status(
        run_dir,
        State.STOPPED if stopped else State.FAILED,
        end,
        exit_status=exits.FAILED if status.exit_status is None else status.exit_status,
    )
    config = read_config(run_dir).tracking.model_copy(update={"flush_timeout_s": _DELIVER_S})
    tracker = Tracker(config, run_dir, params={}, tags={})
    if tracker.run_id is None:  # no MLflow run was ever created, so none can be marked
        return
    tracker.note_end(end)
    tracker.close("KILLED" if stopped else "FAILED")
