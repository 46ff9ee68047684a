"""The work of `vmp jobs`: the state of each run, read from the files in its directory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from pipeline import exits, rundir
from pipeline.errors import ConfigError
from pipeline.rundir import Attempt, End, RunStatus, State, StopClass
from pipeline.rundir.metrics import read_metrics
from slurm import launch, nodes, queue
from slurm.errors import ClusterError
from slurm.follow import LogFollower

_POLL_S = 0.5


@dataclass(frozen=True)
class JobRow:
    """One run as `vmp jobs list` shows it."""

    name: str
    state: str
    """SLURM's state until the job has ended; then finished, stopped, cancelled, failed or lost.

    The state is "unreadable" when the file of the run that holds it is damaged.
    """
    job: str | None = None
    """Cluster and job id of the newest submission; None for `vmp train`."""
    nodes: str | None = None
    """Nodes on which the run is running."""
    step: int = 0
    """Newest logged or reported step."""
    total_steps: int | None = None
    loss: float | None = None
    """Loss of the last logged training step."""
    eta_s: float | None = None
    """Training time left at the current pace, in seconds."""
    restarts: int = 0
    """Number of attempts that have ended."""
    checkpoint: str | None = None
    """Name of the newest committed checkpoint."""
    reason: str = ""
    """Reason of the last stop, or why the job is waiting."""

    def cells(self) -> dict[str, str]:
        """The row for people, by column; "-" stands for what is not known."""
        eta = None if self.eta_s is None else timedelta(seconds=round(self.eta_s))
        return {
            "name": self.name,
            "state": self.state,
            "job": self.job or "-",
            "nodes": self.nodes or "-",
            "step": f"{self.step}/{self.total_steps}" if self.total_steps else str(self.step),
            "loss": "-" if self.loss is None else f"{self.loss:.4f}",
            "eta": "-" if eta is None else str(eta),
            "restarts": str(self.restarts),
            "checkpoint": self.checkpoint or "-",
            "reason": self.reason,
        }


def list_jobs(runs_dir: Path) -> list[JobRow]:
    """Return every run under `runs_dir`, by name. Raises ConfigError without such a directory."""
    _check_is_there(runs_dir)
    return _rows(sorted(path.parent for path in runs_dir.glob(f"*/{rundir.CONFIG_FILE}")))


def job_row(run_dir: Path) -> JobRow:
    """Return one run. Raises ConfigError when there is no such run, as for `list_jobs`."""
    _check_is_there(run_dir.parent)
    if not (run_dir / rundir.CONFIG_FILE).is_file():
        raise ConfigError(f"run {run_dir}: not found; `vmp jobs list` shows the runs")
    return _rows([run_dir])[0]


def _rows(found: list[Path]) -> list[JobRow]:
    submissions = [_last_submission(run_dir) for run_dir in found]
    known = [s for s in submissions if isinstance(s, launch.Submission)]
    views = queue.views([s.job_id for s in known if s.cluster == "slurm"])
    return [_row(*of_run, views) for of_run in zip(found, submissions, strict=True)]


def _check_is_there(runs_dir: Path) -> None:
    if not runs_dir.is_dir():
        raise ConfigError(f"runs directory {runs_dir}: not found; give the one of the recipe")


def _last_submission(run_dir: Path) -> launch.Submission | ClusterError | None:
    """Return the newest submission, or the error of its record, so that other runs still show."""
    try:
        return launch.last_submission(run_dir)
    except ClusterError as error:
        return error


def _row(
    run_dir: Path,
    submission: launch.Submission | ClusterError | None,
    views: dict[str, queue.JobView] | None,
) -> JobRow:
    """Build the row of a run; `views` has the jobs in SLURM, None when it does not answer."""
    if isinstance(submission, ClusterError):
        return JobRow(run_dir.name, State.UNREADABLE, reason=str(submission))
    view = views.get(submission.job_id) if views is not None and submission is not None else None
    status = rundir.read_status(run_dir)
    last = status.state
    if submission is None or submission.cluster == "local":
        state: str = _local_state(run_dir, last)
    elif views is None:
        state = f"{last} (SLURM does not answer)"
    else:
        state = _lost_or(last) if view is None or view.has_ended else view.state.lower()
    training = [row for row in read_metrics(run_dir) if row["kind"] == "train"]
    beat = rundir.read_heartbeat(run_dir)
    past = rundir.read_attempts(run_dir)
    step = max(training[-1]["step"] if training else 0, beat.step if beat else 0)
    total = beat.total_steps if beat else 0
    saved = rundir.committed(run_dir / rundir.CHECKPOINTS)
    is_alive = state in (State.RUNNING, "stopping")
    waits_for = view.waits_for if view is not None and state == "pending" else ""
    return JobRow(
        name=run_dir.name,
        state=state,
        job=None if submission is None else f"{submission.cluster}:{submission.job_id}",
        nodes=(view.nodes or None) if view is not None and is_alive else None,
        step=step,
        total_steps=total or None,
        loss=next((row["loss"] for row in reversed(training) if "loss" in row), None),
        eta_s=(total - step) * beat.step_s if is_alive and beat and beat.step_s else None,
        restarts=len(past),
        checkpoint=saved[-1].name if saved else None,
        reason=f"waits for {waits_for}" if waits_for else _reason(run_dir, state, status, past),
    )


def _local_state(run_dir: Path, last: State) -> State:
    is_running = launch.find_running(run_dir) is not None or rundir.is_active(run_dir)
    return State.RUNNING if is_running else _lost_or(last)


def _lost_or(last: State) -> State:
    """Return the state of a run whose job is gone: lost if the run never recorded its end."""
    return State.LOST if last in (State.RUNNING, State.QUEUED) else last


def _reason(run_dir: Path, state: str, status: RunStatus, past: list[Attempt]) -> str:
    if status.stop_class is StopClass.FINISHED:
        return status.reason
    if status.stop_class is not None:
        return f"{status.stop_class}: {status.reason}"
    if state == State.UNREADABLE:
        return f"{run_dir / rundir.STATUS_FILE}: not a whole status; the next start replaces it"
    if state in (State.RUNNING, "pending") and past:
        return f"before: {past[-1].stop_class}: {past[-1].reason}"
    return ""


def print_log(run_dir: Path, echo: Callable[[str], None], *, follow: bool, rank: int = 0) -> None:
    """Print a rank's log of the newest job; with `follow`, go on until that job ends.

    If the run has failed, the failure that caused it comes last. Raises ConfigError when there is
    no such log.
    """
    submission = _submission(run_dir)
    path = submission.log_of(rank)
    if not path.exists() and not follow:
        known = sorted(p.name for p in path.parent.glob(f"{submission.job_id}_*_log.out"))
        there = ", ".join(known) or "none yet"
        raise ConfigError(f"run {run_dir}: no log {path.name}; there are: {there}")
    log = LogFollower(path, from_start=True)
    while True:
        ended = not follow or launch.find_running(run_dir) is None
        for line in log.new_lines():
            echo(line)
        if ended:
            break
        time.sleep(_POLL_S)
    failure = rundir.first_failure(run_dir, rundir.read_status(run_dir).attempt)
    if failure is not None:
        echo(f"--- first failure: {failure}")
        echo(failure.traceback.rstrip())


def cancel(run_dir: Path, *, save: bool) -> str:
    """End the job of a run, after a checkpoint if `save`, and return a line on what was done.

    Raises ConfigError when no job is known, and ClusterError when the job has ended already.
    """
    submission = _submission(run_dir)
    if launch.find_running(run_dir) is None:
        raise ClusterError(f"run {run_dir}: job {submission.job_id} has ended already")
    if save:
        launch.stop(submission)
        return f"job {submission.job_id} saves a checkpoint and ends"
    launch.kill(submission)
    _write_cancelled(run_dir)
    return f"job {submission.job_id} is cancelled; the last committed checkpoint stays"


def _write_cancelled(run_dir: Path) -> None:
    """Record the cancellation, as killed ranks cannot, for the attempt that was running."""
    rundir.write_status(
        run_dir,
        State.CANCELLED,
        End(StopClass.CANCELLED, "vmp jobs cancel"),
        exit_status=exits.FAILED,
        attempt=rundir.read_status(run_dir).attempt,
    )


def resume(run_dir: Path) -> str:
    """Submit an ended run again, as it was submitted last, and return a line on what was done.

    The job runs the code of this checkout. Raises ConfigError or ClusterError when the run is
    finished, active or cannot start.
    """
    # These imports are slow, and the other commands of this module do not need them.
    from pipeline.config import read_config
    from pipeline.prepare import check_start, prepare_run

    submission = _submission(run_dir)
    running = launch.find_running(run_dir)
    if running is not None:
        raise ClusterError(f"run {run_dir}: job {running.job_id} has it already")
    if rundir.read_status(run_dir).state is State.FINISHED:
        raise ConfigError(f"run {run_dir}: is finished; there is nothing to resume")
    record = submission.record
    run_dir = run_dir.resolve()
    os.chdir(record.folder)
    config = read_config(run_dir).model_copy(update={"runs_dir": run_dir.parent})
    check_start(config, record.resources.nodes * record.resources.ranks_per_node)
    if record.cluster == "local":
        rundir.refuse_active(run_dir)
    prepare_run(config)
    (again,) = launch.submit(
        [run_dir], record.cluster, record.profile, record.resources, then=record.then
    )
    follower = launch.submit_follower(again)
    saved = rundir.committed(run_dir / rundir.CHECKPOINTS)
    where = f"from {saved[-1].name}" if saved else "from its beginning"
    done = f"submitted: job {again.job_id} ({record.cluster}), run {run_dir} goes on {where}"
    return f"{done}\n{follower}" if follower else done


def bad_nodes(runs_dir: Path) -> Iterator[str]:
    """Yield a line for each fault in the ledger of bad nodes, oldest first.

    Raises ConfigError when there is no such directory.
    """
    _check_is_there(runs_dir)
    for fault in nodes.faults(runs_dir):
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(fault.time))
        yield f"{fault.node}  {when}  run {fault.run}  {fault.reason}"


def forgive(runs_dir: Path, node: str) -> str:
    """Forget the faults of a node, and return a line on what was done.

    Raises ConfigError when there is no such directory.
    """
    _check_is_there(runs_dir)
    return f"{node}: {'forgiven' if nodes.forgive(runs_dir, node) else 'has no faults here'}"


def _submission(run_dir: Path) -> launch.Submission:
    submission = launch.last_submission(run_dir)
    if submission is None:
        raise ConfigError(f"run {run_dir}: no job of `vmp submit` is known here")
    return submission
