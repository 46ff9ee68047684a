"""Submitit behind a small surface; the only module that imports it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, Literal

import submitit
from submitit.core.utils import FailedJobError, UncompletedJobError

from slurm import queue
from slurm.errors import ClusterError, JobDiedError
from slurm.profile import ClusterProfile

Cluster = Literal["local", "slurm"]
Job = submitit.Job

# The local executor has no queue and no limit of its own; its default would end a run in minutes.
_LOCAL_TIME_MIN = 365 * 24 * 60


def make_executor(
    cluster: Cluster,
    folder: Path,
    profile: ClusterProfile,
    *,
    name: str,
    nodes: int,
    tasks_per_node: int,
    gpus_per_node: int,
) -> submitit.Executor:
    """An executor whose jobs log into `folder`.

    Raises ClusterError when the cluster is not there or cannot give what is asked.
    """
    if cluster == "local":
        if nodes > 1:
            raise ClusterError(f"--nodes {nodes} needs --cluster slurm: local is this machine")
        local = submitit.LocalExecutor(folder)
        local.update_parameters(
            timeout_min=_LOCAL_TIME_MIN,
            tasks_per_node=tasks_per_node,
            gpus_per_node=gpus_per_node,
            stderr_to_stdout=True,
            setup=list(profile.setup),
        )
        return local
    if submitit.SlurmExecutor.affinity() < 0:
        raise ClusterError(
            "--cluster slurm: no srun on PATH; submit from a login node of a cluster"
        )
    slurm = submitit.SlurmExecutor(folder, max_num_timeout=profile.max_requeues)
    slurm.update_parameters(
        **_slurm_parameters(profile, name, nodes, tasks_per_node, gpus_per_node)
    )
    return slurm


def _slurm_parameters(
    profile: ClusterProfile, name: str, nodes: int, tasks_per_node: int, gpus_per_node: int
) -> dict[str, Any]:
    optional = {
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "exclude": profile.exclude,
        "mem": f"{profile.mem_gb}GB" if profile.mem_gb else None,
        "gpus_per_node": gpus_per_node or None,
    }
    return {
        "job_name": name,
        "nodes": nodes,
        "ntasks_per_node": tasks_per_node,
        "cpus_per_task": profile.cpus_per_task,
        "time": profile.time_min,
        "signal_delay_s": profile.grace_s,
        "stderr_to_stdout": True,
        "setup": list(profile.setup),
        # srun stopped inheriting --cpus-per-task from sbatch in SLURM 22.05.
        # srun truncates logs by default: the log of a requeued job must go on, not start again.
        "srun_args": [
            f"--cpus-per-task={profile.cpus_per_task}",
            "--open-mode=append",
            *profile.srun_args,
        ],
        "additional_parameters": {"requeue": True, "open_mode": "append", **profile.extra},
        **{key: value for key, value in optional.items() if value is not None},
    }


def submit(executor: submitit.Executor, task: Callable[[], int]) -> submitit.Job[int]:
    """Hand one job to the executor. Raises ClusterError with sbatch's reason."""
    return submit_array(executor, [task])[0]


def submit_array(
    executor: submitit.Executor, tasks: Sequence[Callable[[], int]]
) -> list[submitit.Job[int]]:
    """Hand several jobs to the executor; on SLURM they are one array.

    Raises ClusterError with sbatch's reason.
    """
    try:
        # Submitit prints sbatch's complaint and raises it as well: once is enough.
        with redirect_stderr(io.StringIO()), executor.batch():
            jobs: list[submitit.Job[int]] = [executor.submit(task) for task in tasks]
    except FailedJobError as error:
        reason = str(error).strip().splitlines()[-1].split("error: ", 1)[-1]
        raise ClusterError(f"sbatch: {reason}; see the cluster profile") from error
    return jobs


def sbatch_text(executor: submitit.SlurmExecutor) -> str:
    """The script that `submit` would hand to sbatch."""
    # Submitit has no public way to see it without submitting.
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "dry-run")
    return text


def rank_environment() -> dict[str, str]:
    """RANK, LOCAL_RANK, WORLD_SIZE, ... of this task, for torch and DeepSpeed.

    Submitit's own export is not used: it sets CUDA_VISIBLE_DEVICES to the local rank and leaves
    LOCAL_RANK beside it, so that `set_device(LOCAL_RANK)` fails on every rank but 0.
    """
    here = submitit.JobEnvironment()
    local = "SUBMITIT_LOCAL_JOB_ID" in os.environ
    address = "127.0.0.1" if local else queue.node_address(here.hostnames[0])
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    # A requeued job keeps its id: another port keeps its dead predecessor out of the group.
    port = 20000 + (int(here.job_id.partition("_")[0]) * 17 + restart) % 20000
    environment = {
        "RANK": str(here.global_rank),
        "LOCAL_RANK": str(here.local_rank),
        "WORLD_SIZE": str(here.num_tasks),
        "LOCAL_WORLD_SIZE": str(here.num_tasks // here.num_nodes),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }
    if address in ("127.0.0.1", "localhost"):
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    return environment


def results(job: submitit.Job[int]) -> list[int]:
    """What the tasks of a finished job returned.

    Raises JobDiedError when a task ended without a result: it was killed, or its node died.
    """
    try:
        statuses: list[int] = job.results()
    except (UncompletedJobError, FailedJobError) as error:
        raise JobDiedError(f"job {job.job_id}: {str(error).splitlines()[0]}") from error
    return statuses
