"""Submit prepared runs, find the job that has a run already, wait for it, end it."""

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
from pipeline.rundir.paths import ARRAY_LOGS, LOGS, SNAPSHOTS
from slurm import nodes, queue, snapshot
from slurm.errors import ClusterError, JobDiedError
from slurm.executor import Job, make_executor, results, sbatch_text, submit_array
from slurm.executor import submit as hand_over
from slurm.follow import LogFollower
from slurm.job import CommandJob, TrainJob
from slurm.profile import ClusterProfile
from slurm.record import Cluster, JobRecord, Resources, find_record

# squeue is a question to the controller that all users share.
_POLL_S: dict[Cluster, float] = {"local": 0.2, "slurm": 2.0}
_RESUMES = "the same command resumes from the last committed checkpoint"


@dataclass(frozen=True)
class Submission:
    """A job that was handed to an executor."""

    run_dir: Path
    record: JobRecord
    job: Job[int] | None = None
    """None for a job that another process submitted."""

    @property
    def job_id(self) -> str:
        return self.record.job_id

    @property
    def cluster(self) -> Cluster:
        return self.record.cluster

    @property
    def log(self) -> Path:
        """Log of rank 0."""
        return self.record.log

    def log_of(self, rank: int) -> Path:
        """Submitit's name for it: <job>_<rank>_log.out."""
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
    """Hand the runs to the executor, on SLURM as one array; none of them may have a job already.

    `then` is kept in the record of the job; see `submit_follower`. Raises ClusterError.
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
    """Submit a `vmp` command as a SLURM job of one task; returns its id. Raises ClusterError."""
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
    """Submit the command that a successful end of the run sets off; what was done, None = nothing.

    Raises ClusterError.
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
    """What `submit` would hand to sbatch for one run; nothing is written. Raises ClusterError.

    Without SLURM on this machine it is the same, but for nodes that would be avoided.
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
    """Raises ClusterError when SLURM does not answer or cannot give the nodes that are asked."""
    _nodes_to_avoid(runs_dir, profile, resources)


def _log_folder(run_dirs: Sequence[Path]) -> Path:
    first = run_dirs[0]
    return first / LOGS if len(run_dirs) == 1 else first.parent / ARRAY_LOGS / first.name


def _nodes_to_avoid(runs_dir: Path, profile: ClusterProfile, resources: Resources) -> list[str]:
    """Nodes that failed a run lately. Raises ClusterError when there are too few nodes at all."""
    excluded = queue.expand(profile.exclude or "")
    present = [n for n in queue.partition_nodes(profile.partition) if n.name not in excluded]
    if len(present) < resources.nodes:
        where = f"partition '{profile.partition}'" if profile.partition else "the default partition"
        raise ClusterError(
            f"--nodes {resources.nodes}: {where} has {len(present)} that the profile does not "
            "exclude; the job would wait for ever"
        )
    if profile.constraint:  # how many nodes meet it, only SLURM knows
        return []
    usable = [node.name for node in present if node.is_usable]
    return nodes.avoidable(nodes.faulty(runs_dir, profile.bad_node_hours), usable, resources.nodes)


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
        # Submitit's controller passes the signal on to its tasks; a set-up puts a shell before it.
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
    """The job that has `run_dir` now, running or in the queue, whoever submitted it."""
    submission = last_submission(run_dir)
    return None if submission is None or _has_ended(submission) else submission


def last_submission(run_dir: Path) -> Submission | None:
    """The newest job of a run, ended or not."""
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
    """Is the controller of a local job, known by pid and start time, still there?"""
    try:
        process = psutil.Process(int(record.job_id))
        # psutil derives it from the clock, which may be set in between.
        same = record.started is not None and abs(process.create_time() - record.started) < 1.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _has_ended(submission: Submission) -> bool:
    if submission.cluster == "slurm":
        return queue.has_ended(submission.job_id)
    if submission.job is not None:
        return bool(submission.job.done())
    return not _is_alive(submission.record)


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
    status = rundir.read_status(submission.run_dir).exit_status
    if status is None:
        echo(f"job {submission.job_id} ended without a word; {_RESUMES}")
        return FAILED
    return status
