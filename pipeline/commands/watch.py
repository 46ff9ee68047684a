"""What `vmp jobs` shows: each run of a directory, from the files that it leaves there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint import layout
from pipeline.errors import ConfigError
from pipeline.record import rundir
from pipeline.record.metrics import METRICS_FILE, read_metrics
from slurm import launch, queue
from slurm.errors import ClusterError
from slurm.follow import LogFollower

_POLL_S = 0.5


@dataclass(frozen=True)
class JobRow:
    """One run as a line of a table."""

    name: str
    job: str
    """Cluster and job id of the newest submission; "-" for `vmp train`."""
    state: str
    """SLURM's word while the job has not ended; then finished, stopped, failed or lost."""
    step: int
    loss: float | None
    """Of the last logged training step."""
    checkpoint: str
    """The newest committed one."""
    reason: str
    """Of the last stop."""


def list_jobs(runs_dir: Path) -> list[JobRow]:
    """Every run under `runs_dir`, by name. Raises ConfigError when there is no such directory."""
    if not runs_dir.is_dir():
        raise ConfigError(f"runs directory {runs_dir}: not found; give the one of the recipe")
    found = sorted(path.parent for path in runs_dir.glob(f"*/{rundir.CONFIG_FILE}"))
    return [_row(run_dir) for run_dir in found]


def _row(run_dir: Path) -> JobRow:
    submission = launch.last_submission(run_dir)
    status = rundir.read_status(run_dir)
    logged = read_metrics(run_dir) if (run_dir / METRICS_FILE).exists() else []
    training = [row for row in logged if row["kind"] == "train"]
    saved = layout.committed(run_dir / rundir.CHECKPOINTS)
    return JobRow(
        name=run_dir.name,
        job="-" if submission is None else f"{submission.cluster} {submission.job_id}",
        state=_state(run_dir, submission, status.get("state", "never started")),
        step=training[-1]["step"] if training else 0,
        loss=training[-1]["loss"] if training else None,
        checkpoint=saved[-1].name if saved else "-",
        reason=status.get("reason", ""),
    )


def _state(run_dir: Path, submission: launch.Submission | None, last: str) -> str:
    if submission is not None and submission.cluster == "slurm":
        (state,) = queue.states(submission.job_id)[:1]
        if state == queue.UNREACHABLE:
            return f"{last} (SLURM does not answer)"
        if not queue.has_ended(submission.job_id):
            return state.lower()
    elif launch.find_running(run_dir) is not None or rundir.is_active(run_dir):
        return "running"
    return "lost" if last == "running" else last


def print_log(run_dir: Path, echo: Callable[[str], None], *, follow: bool) -> None:
    """Rank 0's log of the newest job; with `follow`, until that job ends. Raises ConfigError."""
    submission = _submission(run_dir)
    log = LogFollower(submission.log, from_start=True)
    while True:
        ended = not follow or launch.find_running(run_dir) is None
        for line in log.new_lines():
            echo(line)
        if ended:
            return
        time.sleep(_POLL_S)


def cancel(run_dir: Path, *, save: bool) -> str:
    """End the job that has the run; returns what was done.

    With `save` it commits a checkpoint first. Raises ConfigError or ClusterError.
    """
    submission = _submission(run_dir)
    if launch.find_running(run_dir) is None:
        raise ClusterError(f"run {run_dir}: job {submission.job_id} has ended already")
    if save:
        launch.stop(submission)
        return f"job {submission.job_id} saves a checkpoint and ends"
    launch.kill(submission)
    return f"job {submission.job_id} is cancelled; the last committed checkpoint stays"


def _submission(run_dir: Path) -> launch.Submission:
    submission = launch.last_submission(run_dir)
    if submission is None:
        raise ConfigError(f"run {run_dir}: no job of `vmp submit` is known here")
    return submission
