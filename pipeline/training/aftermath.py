"""What is written when a run stays down and its own ranks could not say why."""

from __future__ import annotations

from pathlib import Path

from pipeline import exits, rundir
from pipeline.config import read_config
from pipeline.health.failure import first_failure
from pipeline.rundir import attempt_id
from pipeline.tracking import Tracker

_DELIVER_S = 20.0


def explain(run_dir: Path) -> str:
    """Why the ranks have ended: what rank 0 said, or the failure elsewhere that it suffered from.

    Leaves that in status.json. Call it when all ranks are gone.
    """
    status = rundir.read_status(run_dir)
    failure = first_failure(run_dir, status.get("attempt", ""))
    if failure is not None and status.get("state") in ("running", "failed"):
        told = {"stop_class": failure.stop_class.value, "reason": str(failure)}
        if status.get("stop_class") != told["stop_class"]:
            status = {"exit_status": exits.FAILED, **status, **told}
            details = {key: status[key] for key in ("exit_status", *told)}
            rundir.write_status(run_dir, "failed", **details)
    if "stop_class" not in status:
        return "its ranks left no word; see the log"
    return f"{status['stop_class']}: {status.get('reason', '')}"


def settle(run_dir: Path, stop_class: str, reason: str) -> None:
    """Leave the reason in status.json and in the MLflow run, when rank 0 has not done so."""
    status = rundir.read_status(run_dir)
    if status.get("attempt") != attempt_id():  # the ranks of this attempt said nothing
        status = {}
    if "exit_status" in status and status.get("stop_class") == stop_class:
        return
    stopped = status.get("state") == "stopped"
    rundir.write_status(
        run_dir,
        "stopped" if stopped else "failed",
        exit_status=status.get("exit_status", exits.FAILED),
        stop_class=stop_class,
        reason=reason,
    )
    config = read_config(run_dir).tracking.model_copy(update={"flush_timeout_s": _DELIVER_S})
    tracker = Tracker(config, run_dir, params={}, tags={})
    if tracker.run_id is None:  # it never began: there is nothing to mark
        return
    tracker.set_tag("stop.class", stop_class)
    tracker.set_tag("stop.reason", reason[:5000])
    tracker.close("KILLED" if stopped else "FAILED")
