"""Submits prepared runs, finds the job that already has a run, waits for it and ends it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline import rundir
from pipeline.rundir.exits import FAILED
from pipeline.rundir.paths import ARRAY_LOGS, JOB_FILE, LOGS, SNAPSHOTS
from slurm import nodes, queue, snapshot
from slurm.errors import ClusterError, JobDiedError
from slurm.executor import Job, make_executor, results, sbatch_text, submit_array
from slurm.executor import submit as hand_over
from slurm.follow import LogFollower
from slurm.job import CommandJob, TrainJob
from slurm.profile import ClusterProfile
from slurm.record import Cluster, JobRecord, Resources, find_record

# squeue queries the controller, which all users share, so it is called less often.
_POLL_S: dict[Cluster, float] = {"local": 0.2, "slurm": 2.0}
_RESUMES = "the same command resumes from the last committed checkpoint"


@dataclass(frozen=True)
class Submission:
    """A job that was submitted."""

    run_dir: Path
    record: JobRecord
    job: Job[int] | None = None
    """Submitit's handle; None when another process submitted the job."""

    @property
    def job_id(self) -> str:
        return self.record.job_id

    @property
    def cluster(self) -> Cluster:
        return self.record.cluster

    @property
    def log(self) -> Path:
        """The log of rank 0."""
        return self.record.log

    def log_of(self, rank: int) -> Path:
        """The log of `rank`, which Submitit names <job>_<rank>_log.out.

        Raises ClusterError when a damaged record does not name that of rank 0.
        """
        if not self.log.name:
            path = self.run_dir / JOB_FILE
            raise ClusterError(f"{path}: names no log; look in {self.run_dir / LOGS}")
        return self.log.with_name(self.log.name.replace("_0_log.", f"_{rank}_log."))


def submit(
    run_dirs: Sequence[Path],
    cluster: Cluster,
    profile: ClusterProfile,
    resources: Resources,
    *,
    dependency: str | None = None,
    parallel: int | None = None,
    then: str | None = None,
) -> list[Submission]:
    """Submit the runs, on SLURM as one array. None of them may have a job already.

    The record of each job keeps `then`; see `submit_follower`. Raises ClusterError.
    """
    first = run_dirs[0]
    avoided = _nodes_to_avoid(first.parent, profile, resources) if cluster == "slurm" else []
    code = snapshot.take(first.parent)
    executor = make_executor(
        cluster,
        _log_folder(run_dirs),
        profile,
        resources,
        name=first.name,
        code=code,
        supervised=run_dirs,
        dependency=dependency,
        exclude=avoided,
        parallel=parallel,
    )
    for run_dir in run_dirs:
        snapshot.link(run_dir, code)
        rundir.forget_status(run_dir)
    tasks = [TrainJob(str(run_dir.resolve()), profile.grace_s) for run_dir in run_dirs]
    submissions = []
    for run_dir, job in zip(run_dirs, submit_array(executor, tasks), strict=True):
        record = JobRecord(
            cluster=cluster,
            job_id=job.job_id,
            log=job.paths.stdout,
            started=psutil.Process(int(job.job_id)).create_time() if cluster == "local" else None,
            resources=resources,
            profile=profile,
            folder=Path.cwd(),
            code=str(code),
            then=then,
        )
        record.write(run_dir)
        submissions.append(Submission(run_dir, record, job))
    return submissions


def submit_command(
    arguments: Sequence[str],
    run_dir: Path,
    profile: ClusterProfile,
    resources: Resources,
    *,
    dependency: str | None = None,
) -> str:
    """Submit a `vmp` command as a SLURM job of one task; return its id. Raises ClusterError."""
    executor = make_executor(
        "slurm",
        run_dir / LOGS,
        profile,
        resources,
        name=f"{run_dir.name}-{arguments[0]}",
        code=snapshot.take(run_dir.parent),
        dependency=dependency,
    )
    job_id: str = hand_over(executor, CommandJob(tuple(arguments), str(Path.cwd()))).job_id
    return job_id


def submit_follower(submission: Submission) -> str | None:
    """Submit the command that is to follow a successful end of the run.

    Returns a line that says what was submitted, or None when no command follows. Raises
    ClusterError.
    """
    record = submission.record
    if record.then is None:
        return None
    one_task = Resources(
        gpus_per_node=min(1, record.resources.gpus_per_node),
        cpus_per_task=record.resources.cpus_per_task,
    )
    job_id = submit_command(
        split_command(record.then),
        submission.run_dir,
        record.profile,
        one_task,
        dependency=f"afterok:{record.job_id}",
    )
    return f"submitted: job {job_id} (slurm), vmp {record.then}"


def dry_run(run_dirs: Sequence[Path], profile: ClusterProfile, resources: Resources) -> str:
    """The text that `submit` would pass to sbatch for one run. Writes nothing; raises ClusterError.

    On a machine without SLURM the text lacks only the list of nodes to avoid.
    """
    run_dir = run_dirs[0]
    avoided = _nodes_to_avoid(run_dir.parent, profile, resources) if queue.is_here() else []
    return sbatch_text(
        make_executor(
            "slurm",
            _log_folder(run_dirs),
            profile,
            resources,
            name=run_dir.name,
            code=run_dir.parent.resolve() / SNAPSHOTS / "SNAPSHOT",
            supervised=run_dirs,
            exclude=avoided,
            only_text=True,
        )
    )


def check_nodes(runs_dir: Path, profile: ClusterProfile, resources: Resources) -> None:
    """Raise ClusterError when SLURM does not answer or has fewer nodes than requested."""
    _nodes_to_avoid(runs_dir, profile, resources)


def _log_folder(run_dirs: Sequence[Path]) -> Path:
    first = run_dirs[0]
    return first / LOGS if len(run_dirs) == 1 else first.parent / ARRAY_LOGS / first.name


def _nodes_to_avoid(runs_dir: Path, profile: ClusterProfile, resources: Resources) -> list[str]:
    """Nodes that failed a run recently. Raises ClusterError when there are too few nodes in all."""
    excluded = queue.expand(profile.exclude or "")
    present = [n for n in queue.partition_nodes(profile.partition) if n.name not in excluded]
    if len(present) < resources.nodes:
        where = f"partition '{profile.partition}'" if profile.partition else "the default partition"
        raise ClusterError(
            f"--nodes {resources.nodes}: {where} has {len(present)} nodes that the profile "
            "does not exclude; the job would wait forever"
        )
    if profile.constraint:  # only SLURM knows how many nodes meet it
        return []
    usable = [node.name for node in present if node.is_usable]
    return nodes.avoidable(nodes.faulty(runs_dir, profile.bad_node_hours), usable, resources.nodes)


def wait(submission: Submission, echo: Callable[[str], None]) -> int:
    """Pass the log of rank 0 to `echo` until the job ends; return the exit status of the run.

    Ctrl-C asks the run to save and stop; waiting goes on until it has.
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
        # Submitit's controller forwards the signal to its tasks. With a set-up, a shell is its
        # parent.
        first = psutil.Process(int(submission.job_id))
        controllers = first.children() if submission.record.profile.setup else [first]
        for controller in controllers:
            controller.terminate()
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
    """The job that `run_dir` has now, running or queued, whoever submitted it; None without one."""
    submission = last_submission(run_dir)
    return None if submission is None or _has_ended(submission) else submission


def last_submission(run_dir: Path) -> Submission | None:
    """The newest job of a run, ended or not; None when the run was never submitted."""
    record = find_record(run_dir)
    return None if record is None else Submission(run_dir, record)


def split_command(text: str) -> list[str]:
    """The words of a `vmp` command. Raises ClusterError when its quotes do not match."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ClusterError(f"command '{text}': {error}") from error
    words = words[1:] if words[:1] == ["vmp"] else words
    if not words:
        raise ClusterError("an empty command: give the words after vmp, such as 'eval runs/x data'")
    return words


def _is_alive(record: JobRecord) -> bool:
    """Whether the controller of a local job still runs; pid and start time identify it."""
    try:
        process = psutil.Process(int(record.job_id))
        # psutil derives the start time from the clock, which may have been adjusted since.
        same = record.started is not None and abs(process.create_time() - record.started) < 1.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError, OverflowError):  # a damaged number is no process
        return False


def _has_ended(submission: Submission) -> bool:
    if submission.cluster == "slurm":
        return queue.has_ended(submission.job_id)
    if submission.job is not None:
        return bool(submission.job.done())
    return not _is_alive(submission.record)


def _exit_status(submission: Submission, echo: Callable[[str], None]) -> int:
    """The worst status of the ranks, or the one that rank 0 wrote; FAILED when there is none.

    The results of a SLURM job are not read, because those of an attempt before a requeue remain.
    """
    if submission.cluster == "local" and submission.job is not None:
        try:
            return max(results(submission.job), default=FAILED)
        except JobDiedError as error:
            echo(f"{error}; {_RESUMES}")
            return FAILED
    status = rundir.read_status(submission.run_dir).exit_status
    if status is None:
        echo(f"job {submission.job_id} ended without a word; {_RESUMES}")
        return FAILED
    return status
