"""Submit a prepared run, or find the job that is running it already."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from slurm.errors import JobDiedError
from slurm.executor import Cluster, Job, make_executor, results
from slurm.follow import LogFollower
from slurm.job import TrainJob
from slurm.profile import ClusterProfile

JOB_FILE = "job.json"
_POLL_S = 0.2
FAILED = 1


@dataclass(frozen=True)
class Submission:
    """A job that was handed to an executor."""

    run_dir: Path
    cluster: Cluster
    job_id: str
    log: Path
    """Log of rank 0."""
    job: Job[int] | None
    """None for a job that another process submitted."""


def submit(
    run_dir: Path,
    cluster: Cluster,
    profile: ClusterProfile,
    *,
    nodes: int,
    ranks_per_node: int,
    gpus_per_node: int,
) -> Submission:
    """Hand the run to the executor, unless a job of this machine is running it: then find that one.

    Raises ClusterError.
    """
    running = find_running(run_dir)
    if running is not None:
        return running
    executor = make_executor(
        cluster,
        run_dir / "logs",
        profile,
        name=run_dir.name,
        nodes=nodes,
        tasks_per_node=ranks_per_node,
        gpus_per_node=gpus_per_node,
    )
    job = executor.submit(TrainJob(str(run_dir.resolve())))
    submission = Submission(run_dir, cluster, job.job_id, job.paths.stdout, job)
    _remember(submission)
    return submission


def wait(submission: Submission, echo: Callable[[str], None]) -> int:
    """Pass rank 0's log to `echo` until the job ends; returns the exit status of the run.

    Ctrl-C asks the run to save and stop, and goes on waiting for it.
    """
    follower = LogFollower(submission.log, from_start=submission.job is not None)
    while True:
        try:
            ended = _has_ended(submission)
            for line in follower.new_lines():
                echo(line)
            if ended:
                return _exit_status(submission, echo)
            time.sleep(_POLL_S)
        except KeyboardInterrupt:
            echo("stopping: the run saves a checkpoint and ends")
            stop(submission)


def stop(submission: Submission) -> None:
    """Ask the run to save and end."""
    if submission.cluster == "local":
        # Submitit's controller passes the signal on to its tasks.
        psutil.Process(int(submission.job_id)).terminate()
    elif submission.job is not None:
        submission.job.cancel()


def find_running(run_dir: Path) -> Submission | None:
    """The local job that is running `run_dir` now, started by this or another process."""
    path = run_dir / JOB_FILE
    if not path.exists():
        return None
    record = json.loads(path.read_text())
    if record["cluster"] != "local" or not _is_alive(record):
        return None
    return Submission(run_dir, "local", record["job_id"], Path(record["log"]), None)


def _remember(submission: Submission) -> None:
    record: dict[str, Any] = {
        "cluster": submission.cluster,
        "job_id": submission.job_id,
        "log": str(submission.log),
    }
    if submission.cluster == "local":
        record["started"] = psutil.Process(int(submission.job_id)).create_time()
    path = submission.run_dir / JOB_FILE
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(record))
    temporary.replace(path)


def _is_alive(record: dict[str, Any]) -> bool:
    """Is the controller of a local job, known by pid and start time, still there?"""
    try:
        process = psutil.Process(int(record["job_id"]))
        same = bool(process.create_time() == record["started"])
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _has_ended(submission: Submission) -> bool:
    if submission.job is not None:
        return bool(submission.job.done())
    return find_running(submission.run_dir) is None


def _exit_status(submission: Submission, echo: Callable[[str], None]) -> int:
    """The worst of the ranks; FAILED when one was killed and left nothing."""
    if submission.job is not None:
        try:
            return max(results(submission.job), default=FAILED)
        except JobDiedError as error:
            echo(f"{error}; the same command resumes from the last committed checkpoint")
            return FAILED
    status = json.loads((submission.run_dir / "status.json").read_text())
    return int(status.get("exit_status", FAILED))
