"""Wraps Submitit in a small interface. No other module imports it."""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, UncompletedJobError
from submitit.helpers import clean_env

from slurm import queue, ranks
from slurm.errors import ClusterError, JobDiedError
from slurm.profile import ClusterProfile
from slurm.record import Cluster, Resources

Job = submitit.Job

# A local job needs no time limit, but Submitit's default would end a run within minutes.
_LOCAL_TIME_MIN = 365 * 24 * 60


class _SbatchWriter(submitit.SlurmExecutor):  # type: ignore[misc]
    """Writes the sbatch text on any machine and submits nothing."""

    @classmethod
    def affinity(cls) -> int:
        return 1


def make_executor(
    cluster: Cluster,
    folder: Path,
    profile: ClusterProfile,
    resources: Resources,
    *,
    name: str,
    code: Path,
    supervised: Sequence[Path] = (),
    dependency: str | None = None,
    exclude: Sequence[str] = (),
    parallel: int | None = None,
    only_text: bool = False,
) -> submitit.Executor:
    """Make an executor whose jobs log into `folder` and run the code in the directory `code`.

    Args:
        supervised: one run directory per job, in the order of the jobs; `slurm.supervise` decides
            what follows when a job ends.
        dependency: a dependency in sbatch's notation, such as afterok:123.
        exclude: nodes to avoid in addition to those of the profile.
        parallel: the number of jobs of an array that may run at once.
        only_text: whether the executor serves only `sbatch_text`, which needs no SLURM.
    Raises ClusterError when the cluster is absent or cannot provide the resources.
    """
    if cluster == "local":
        if resources.nodes > 1:
            raise ClusterError(
                f"--nodes {resources.nodes} needs --cluster slurm: local is this machine"
            )
        local = submitit.LocalExecutor(folder, python=_python(code, sys.executable))
        local.update_parameters(
            timeout_min=_LOCAL_TIME_MIN,
            tasks_per_node=resources.ranks_per_node,
            gpus_per_node=resources.gpus_per_node,
            stderr_to_stdout=True,
            setup=list(profile.setup),
        )
        return local
    kind = _SbatchWriter if only_text else submitit.SlurmExecutor
    if kind.affinity() < 0:
        raise ClusterError(
            "--cluster slurm: no srun on PATH; submit from a login node of a cluster"
        )
    for text in filter(None, (str(folder), name, dependency, *map(str, supervised))):
        if not text.isprintable():
            raise ClusterError(f"{text!r}: holds a line break or control character; rename it")
    slurm = kind(folder, python=_rank_python(code, profile, resources))
    slurm.update_parameters(**_slurm_parameters(profile, resources, name, exclude))
    if dependency is not None:
        slurm.update_parameters(dependency=dependency)
    if parallel is not None:
        slurm.update_parameters(array_parallelism=parallel)
    if supervised:
        runs = shlex.join(str(run_dir.resolve()) for run_dir in supervised)
        line = f"{_python(code, sys.executable)} -m slurm.supervise $? {runs}"
        slurm.update_parameters(teardown=[line])
    return slurm


def _python(code: Path, interpreter: str) -> str:
    """The command that runs Python on the snapshot, whatever the working directory holds."""
    # Python would read an empty entry as the working directory of the job.
    others = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    path = os.pathsep.join([str(code), *others])
    return shlex.join(["env", "PYTHONSAFEPATH=1", f"PYTHONPATH={path}", interpreter])


def _rank_python(code: Path, profile: ClusterProfile, resources: Resources) -> str:
    box = profile.container
    if box is None:
        return _python(code, sys.executable)
    if box.runtime == "pyxis":
        return _python(code, box.python)
    binds = [argument for mount in box.mounts for argument in ("--bind", mount)]
    gpus = ["--nv"] if resources.gpus_per_node else []
    wrapper = shlex.join(["apptainer", "exec", *gpus, *binds, box.image])
    return f"{wrapper} {_python(code, box.python)}"


def _slurm_parameters(
    profile: ClusterProfile, resources: Resources, name: str, exclude: Sequence[str]
) -> dict[str, Any]:
    excluded = ",".join(filter(None, [profile.exclude, *exclude]))
    optional = {
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "exclude": excluded or None,
        "mem": f"{profile.mem_gb}GB" if profile.mem_gb else None,
        "gpus_per_node": resources.gpus_per_node or None,
    }
    return {
        "job_name": name,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.ranks_per_node,
        "cpus_per_task": resources.cpus_per_task,
        "time": profile.time_min,
        "signal_delay_s": profile.grace_s,
        "stderr_to_stdout": True,
        "setup": list(profile.setup),
        "srun_args": [
            # srun stopped inheriting --cpus-per-task from sbatch in SLURM 22.05.
            f"--cpus-per-task={resources.cpus_per_task}",
            # srun truncates logs by default, but a requeued job must append to its log.
            "--open-mode=append",
            # srun terminates the ranks that wait for a dead one, and kills those that ignore it.
            "--kill-on-bad-exit=1",
            *_container_args(profile),
            *profile.srun_args,
        ],
        "additional_parameters": {
            "requeue": True,
            "open_mode": "append",
            # A job that depends on a failed one would otherwise wait forever.
            "kill_on_invalid_dep": "yes",
            **profile.extra,
        },
        **{key: value for key, value in optional.items() if value is not None},
    }


def _container_args(profile: ClusterProfile) -> list[str]:
    box = profile.container
    if box is None or box.runtime != "pyxis":
        return []
    mounts = [f"--container-mounts={','.join(box.mounts)}"] if box.mounts else []
    return [f"--container-image={box.image}", *mounts]


def submit(executor: submitit.Executor, task: Callable[[], int]) -> submitit.Job[int]:
    """Submit one job. Raises ClusterError with sbatch's reason."""
    return submit_array(executor, [task])[0]


def submit_array(
    executor: submitit.Executor, tasks: Sequence[Callable[[], int]]
) -> list[submitit.Job[int]]:
    """Submit several jobs; on SLURM they form one array.

    Raises ClusterError with sbatch's reason.
    """
    try:
        # Submitit both prints and raises sbatch's complaint; the exception is enough.
        quiet = redirect_stderr(io.StringIO())
        with (
            _outside_of_any_job(),
            _deaf_to_interrupts(),
            _not_written_by_all(),
            quiet,
            executor.batch(),
        ):
            jobs: list[submitit.Job[int]] = [executor.submit(task) for task in tasks]
    except FailedJobError as error:
        reason = str(error).strip().splitlines()[-1].split("error: ", 1)[-1]
        raise ClusterError(f"sbatch: {reason}; see the cluster profile") from error
    return jobs


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Make the controller of a local job, started inside, ignore Ctrl-C: the run saves first."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def _not_written_by_all() -> Iterator[None]:
    """Create files that others cannot write: a job's pickle runs as its owner."""
    before = os.umask(0o077)
    os.umask(before | 0o002)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def _outside_of_any_job() -> Iterator[None]:
    """Hide the variables of the current job, so that a job it submits does not inherit them."""
    conf = os.environ.get("SLURM_CONF")
    with clean_env():
        # Submitit starts the controller of a local job without interpreter options.
        os.environ["PYTHONSAFEPATH"] = "1"
        if conf is not None:
            os.environ["SLURM_CONF"] = conf
        yield


def sbatch_text(executor: submitit.SlurmExecutor) -> str:
    """The script that `submit` would hand to sbatch."""
    # Submitit has no public function that returns the text without submitting it.
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "dry-run")
    return text


def rank_environment() -> dict[str, str]:
    """The variables RANK, LOCAL_RANK, WORLD_SIZE, ... of this task, for torch and DeepSpeed.

    Submitit's own export does not serve: it sets CUDA_VISIBLE_DEVICES to the local rank and also
    sets LOCAL_RANK, so that `set_device(LOCAL_RANK)` fails on every rank but 0.
    """
    here = submitit.JobEnvironment()
    local = "SUBMITIT_LOCAL_JOB_ID" in os.environ
    return ranks.environment(
        here.global_rank,
        here.local_rank,
        here.num_tasks,
        here.num_nodes,
        address="127.0.0.1" if local else queue.node_address(here.hostnames[0]),
        port=ranks.port_of(int(here.raw_job_id)),
    )


def results(job: submitit.Job[int]) -> list[int]:
    """The return values of the tasks of a finished job.

    Raises JobDiedError when a task left no result because it was killed or its node died.
    """
    try:
        statuses: list[int] = job.results()
    except (UncompletedJobError, FailedJobError) as error:
        raise JobDiedError(f"job {job.job_id}: {str(error).splitlines()[0]}") from error
    return statuses
