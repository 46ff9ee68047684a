"""Queries and changes jobs through SLURM's own commands.

`sacct` needs an accounting database, which many clusters and the one of our tests lack. `squeue`
knows every job until `MinJobAge` (5 minutes by default) after its end.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from typing import NamedTuple

from slurm.errors import ClusterError

_TIMEOUT_S = 60.0
_PATIENCE_S = 300.0
_AGAIN_S = 5.0
_AWAY = re.compile(r"unable to contact|socket timed out|connection refused|communication", re.I)
_ENDED = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    }
)
_UNUSABLE = ("down", "drain", "fail", "maint", "unknown", "power")
FORGOTTEN = "FORGOTTEN"
"""State of a job that ended so long ago that SLURM no longer knows it."""
UNREACHABLE = "UNREACHABLE"
"""State of a job about which nothing is known, because the controller did not answer."""


def states(job_id: str) -> list[str]:
    """The state of the job, or of each element of the array, as `squeue` writes it.

    The list is never empty: without an answer it holds FORGOTTEN or UNREACHABLE.
    """
    try:
        answer = _run("squeue", "-h", "-r", "-t", "all", "-j", job_id, "-o", "%T")
    except (OSError, subprocess.TimeoutExpired):
        return [UNREACHABLE]
    if answer.returncode:
        return [FORGOTTEN if "Invalid job id" in answer.stderr else UNREACHABLE]
    return answer.stdout.split() or [FORGOTTEN]


def own_job_id() -> str:
    """The id of the job that this process belongs to, as its submitter knows it.

    The variable SLURM_JOB_ID of an array element does not tell which element it is.
    """
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def own_restart() -> int:
    """How often SLURM has restarted the job of this process."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def own_attempt() -> str:
    """The id of this attempt: that of the job and the number of its restarts."""
    return f"{own_job_id()}.{own_restart()}"


def own_node() -> str:
    """SLURM's name of this machine, or else its host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def has_ended(job_id: str) -> bool:
    """Whether no element of the job is waiting, running or being requeued."""
    return all(state in _ENDED or state == FORGOTTEN for state in states(job_id))


class JobView(NamedTuple):
    """One job as `squeue` shows it."""

    state: str
    nodes: str
    """The nodes of the job in SLURM's notation; empty while it waits."""
    waits_for: str
    """Why the job is not running: Resources, Priority, BeginTime, Dependency, ..."""

    @property
    def has_ended(self) -> bool:
        return self.state in _ENDED


def views(job_ids: Sequence[str]) -> dict[str, JobView] | None:
    """Look up jobs by their ids in one query, without those that SLURM has forgotten.

    Returns None when the controller does not answer.
    """
    if not job_ids:
        return {}
    which = ("-j", ",".join(job_ids))
    try:
        answer = _run("squeue", "-h", "-r", "-t", "all", *which, "-o", "%i|%T|%N|%r")
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode and "Invalid job id" not in answer.stderr:
        return None
    rows = (line.split("|", 3) for line in answer.stdout.splitlines())
    return {
        job: JobView(state, nodes, "" if reason == "None" else reason)
        for job, state, nodes, reason in rows
    }


def requeue(job_id: str) -> str | None:
    """Requeue the running job that calls this; return None, or the reason why it was not done.

    A job is left alone when somebody cancelled it, when SLURM preempted it and requeues it itself,
    or when it was told not to come back (`save_and_stop`).
    """
    try:
        job = describe(job_id)
        if job.get("JobState") != "RUNNING":
            return f"it is {job.get('JobState', 'unknown')}"
        if job.get("Requeue") != "1":
            return "it was asked to stay down, or the cluster forbids requeueing"
        answer = _run_patiently("scontrol", "requeue", job_id)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"scontrol failed: {error}"
    if answer.returncode:
        return f"scontrol requeue: {_reason(answer.stderr)} (status {answer.returncode})"
    return None


def hold_off(job_id: str, *, delay_s: int, exclude: Sequence[str]) -> None:
    """Make a waiting job start later or elsewhere. Raises ClusterError when SLURM refuses."""
    changes = [f"StartTime=now+{delay_s}"] if delay_s else []
    changes += [f"ExcNodeList={','.join(exclude)}"] if exclude else []
    if changes:
        _checked("scontrol", "update", f"JobId={job_id}", *changes)


def save_and_stop(job_id: str) -> None:
    """Ask a job to save, end and not come back; remove a job that still waits.

    Raises ClusterError when SLURM refuses.
    """
    if "PENDING" in states(job_id):
        cancel(job_id)
        return
    _checked("scontrol", "update", f"JobId={job_id}", "Requeue=0")
    # With --full the signal would kill the batch shell, and the ranks with it.
    _checked("scancel", "--signal=TERM", job_id)


def cancel(job_id: str) -> None:
    """End a job or remove it from the queue at once. Raises ClusterError when SLURM refuses."""
    _checked("scancel", job_id)


def node_address(node: str) -> str:
    """The address at which the controller reaches a node (NodeAddr), or else the node's name."""
    try:
        found = re.search(r"\bNodeAddr=(\S+)", _run("scontrol", "show", "node", node).stdout)
    except (OSError, subprocess.TimeoutExpired):
        return node
    return found[1] if found else node


class Node(NamedTuple):
    """A node of a partition."""

    name: str
    is_usable: bool
    """Whether the node is not down, draining or failing."""


def partition_nodes(partition: str | None) -> list[Node]:
    """The nodes of a partition; None means the default partition.

    Raises ClusterError when SLURM does not know the partition.
    """
    which = ["-p", partition] if partition else []
    answer = _checked("sinfo", "-h", "-N", *which, "-o", "%N|%T|%P")
    rows = [line.split("|") for line in answer.splitlines()]
    if partition and not rows:
        raise ClusterError(f"partition '{partition}': SLURM knows no such partition, see sinfo")
    found = {
        name: Node(name, not state.startswith(_UNUSABLE))
        for name, state, its_partition in rows
        if partition or its_partition.endswith("*")
    }
    return list(found.values())  # a node of two partitions counts once


def is_here() -> bool:
    """Whether this machine has SLURM's commands."""
    return shutil.which("sinfo") is not None


def expand(nodes: str) -> list[str]:
    """Expand SLURM's notation, node[1-3], into names. Raises ClusterError."""
    return _checked("scontrol", "show", "hostnames", nodes).split() if nodes else []


def describe(job_id: str) -> dict[str, str]:
    """The fields of `scontrol show job`; {} when SLURM does not know the job.

    Waits for a controller that does not answer. Raises OSError when scontrol is absent.
    """
    answer = _run_patiently("scontrol", "-o", "show", "job", job_id)
    return dict(field.split("=", 1) for field in answer.stdout.split() if "=" in field)


def _checked(*command: str) -> str:
    try:
        answer = _run(*command)
    except FileNotFoundError as error:
        raise ClusterError(
            f"no {command[0]} on the PATH: SLURM's commands are on the login nodes of a cluster"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClusterError(f"{command[0]}: {error}") from error
    if answer.returncode:
        raise ClusterError(f"{' '.join(command)}: {_reason(answer.stderr)}")
    return answer.stdout


def _reason(stderr: str) -> str:
    """The last line, which names the cause, without the program's name."""
    lines = stderr.strip().splitlines() or ["no reason given"]
    return lines[-1].split("error: ", 1)[-1]


def _run_patiently(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as `_run` does, and repeat it while the controller is away for some minutes."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            answer = _run(*command)
            if not answer.returncode or not _AWAY.search(answer.stderr):
                return answer
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                raise
        else:
            if time.monotonic() > deadline:
                return answer
        time.sleep(_AGAIN_S)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
