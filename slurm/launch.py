"""Submit a prepared run, or find the job that is running it already."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from slurm import queue
from slurm.errors import JobDiedError
from slurm.executor import Cluster, Job, make_executor, results, sbatch_text
from slurm.executor import submit as hand_over
from slurm.follow import LogFollower
from slurm.job import TrainJob
from slurm.profile import ClusterProfile

JOB_FILE = "job.json"
STATUS_FILE = "status.json"
"""Written by rank 0, see `pipeline.record.rundir`."""
# squeue is a question to the controller that all users share.
_POLL_S: dict[Cluster, float] = {"local": 0.2, "slurm": 2.0}
FAILED = 1
_RESUMES = "the same command resumes from the last committed checkpoint"


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
    """Hand the run to the executor, unless a job has it already: then find that one.

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
    job = hand_over(executor, TrainJob(str(run_dir.resolve()), profile.max_requeues))
    # From the last job: it must not be taken for how this one ended.
    (run_dir / STATUS_FILE).unlink(missing_ok=True)
    submission = Submission(run_dir, cluster, job.job_id, job.paths.stdout, job)
    _remember(submission)
    return submission


def dry_run(
    run_dir: Path, profile: ClusterProfile, *, nodes: int, ranks_per_node: int, gpus_per_node: int
) -> str:
    """What `submit` would hand to sbatch; nothing is written. Raises ClusterError."""
    return sbatch_text(
        make_executor(
            "slurm",
            run_dir / "logs",
            profile,
            name=run_dir.name,
            nodes=nodes,
            tasks_per_node=ranks_per_node,
            gpus_per_node=gpus_per_node,
        )
    )


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
            time.sleep(_POLL_S[submission.cluster])
        except KeyboardInterrupt:
            echo("stopping: the run saves a checkpoint and ends")
            stop(submission)


def stop(submission: Submission) -> None:
    """Ask the run to save and end."""
    if submission.cluster == "local":
        # Submitit's controller passes the signal on to its tasks.
        psutil.Process(int(submission.job_id)).terminate()
    else:
        queue.save_and_stop(submission.job_id)


def kill(submission: Submission) -> None:
    """End the job at once, without a checkpoint. Raises ClusterError when SLURM refuses."""
    if submission.cluster == "slurm":
        queue.cancel(submission.job_id)
        return
    controller = psutil.Process(int(submission.job_id))
    processes = [controller, *controller.children(recursive=True)]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=30)


def find_running(run_dir: Path) -> Submission | None:
    """The job that has `run_dir` now, running or in the queue, whoever submitted it."""
    submission = last_submission(run_dir)
    return None if submission is None or _has_ended(submission) else submission


def last_submission(run_dir: Path) -> Submission | None:
    """The newest job of a run, ended or not."""
    record = _recall(run_dir)
    if record is None:
        return None
    return Submission(run_dir, record["cluster"], record["job_id"], Path(record["log"]), None)


def _recall(run_dir: Path) -> dict[str, Any] | None:
    path = run_dir / JOB_FILE
    record: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return record


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
    if submission.cluster == "slurm":
        return queue.has_ended(submission.job_id)
    if submission.job is not None:
        return bool(submission.job.done())
    record = _recall(submission.run_dir)
    return record is None or not _is_alive(record)


def _exit_status(submission: Submission, echo: Callable[[str], None]) -> int:
    """The worst of the ranks, or what rank 0 wrote; FAILED when it was killed and left nothing.

    Results of a SLURM job are not read: those of an attempt before a requeue would still be there.
    """
    if submission.cluster == "local" and submission.job is not None:
        try:
            return max(results(submission.job), default=FAILED)
        except JobDiedError as error:
            echo(f"{error}; {_RESUMES}")
            return FAILED
    path = submission.run_dir / STATUS_FILE
    status = json.loads(path.read_text()) if path.exists() else {}
    if "exit_status" not in status:
        echo(f"job {submission.job_id} ended without a word; {_RESUMES}")
    return int(status.get("exit_status", FAILED))
