"""What SLURM says about jobs, and asking it to change them, through its own commands.

`sacct` needs an accounting database that many clusters, and ours in the tests, do not have;
`squeue` knows every job until `MinJobAge` (5 minutes by default) after its end.
"""

from __future__ import annotations

import re
import subprocess

from slurm.errors import ClusterError

_TIMEOUT_S = 60.0
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
FORGOTTEN = "FORGOTTEN"
"""The job ended so long ago that SLURM does not know it any more."""
UNREACHABLE = "UNREACHABLE"
"""The controller did not answer: nothing is known about the job."""


def states(job_id: str) -> list[str]:
    """State of the job, or of each element of the array, as `squeue` writes it.

    Never empty; FORGOTTEN or UNREACHABLE when there is no answer.
    """
    try:
        answer = _run("squeue", "-h", "-r", "-t", "all", "-j", job_id, "-o", "%T")
    except (OSError, subprocess.TimeoutExpired):
        return [UNREACHABLE]
    if answer.returncode:
        return [FORGOTTEN if "Invalid job id" in answer.stderr else UNREACHABLE]
    return answer.stdout.split() or [FORGOTTEN]


def has_ended(job_id: str) -> bool:
    """No element of the job is waiting, running or on its way back into the queue."""
    return all(state in _ENDED or state == FORGOTTEN for state in states(job_id))


def requeue(job_id: str, *, max_requeues: int) -> str | None:
    """Put the running job that calls this back into the queue; the reason when that is not done.

    A job that somebody cancelled, that SLURM preempted and requeues itself, or that was told to
    stay down (`save_and_stop`) is left alone.
    """
    try:
        job = _describe(job_id)
        if job.get("JobState") != "RUNNING":
            return f"it is {job.get('JobState', 'unknown')}"
        if job.get("Requeue") != "1":
            return "it was asked to stay down, or the cluster forbids requeueing"
        if int(job.get("Restarts", "0")) >= max_requeues:
            return f"it was requeued max_requeues={max_requeues} times already"
        answer = _run("scontrol", "requeue", job_id)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"scontrol failed: {error}"
    if answer.returncode:
        return f"scontrol requeue: {_reason(answer.stderr)} (status {answer.returncode})"
    return None


def save_and_stop(job_id: str) -> None:
    """Ask a job to save and end, and not to come back; one that still waits is removed.

    Raises ClusterError when SLURM refuses.
    """
    if "PENDING" in states(job_id):
        cancel(job_id)
        return
    _checked("scontrol", "update", f"JobId={job_id}", "Requeue=0")
    # Without --full: the batch shell would die of the signal and take the ranks with it.
    _checked("scancel", "--signal=TERM", job_id)


def cancel(job_id: str) -> None:
    """End a job, or remove it from the queue, at once. Raises ClusterError when SLURM refuses."""
    _checked("scancel", job_id)


def node_address(node: str) -> str:
    """Where the controller reaches a node (NodeAddr); the name itself when SLURM does not say."""
    try:
        found = re.search(r"\bNodeAddr=(\S+)", _run("scontrol", "show", "node", node).stdout)
    except (OSError, subprocess.TimeoutExpired):
        return node
    return found[1] if found else node


def _describe(job_id: str) -> dict[str, str]:
    """Fields of `scontrol show job`; {} when it has no answer."""
    answer = _run("scontrol", "-o", "show", "job", job_id)
    return dict(field.split("=", 1) for field in answer.stdout.split() if "=" in field)


def _checked(*command: str) -> None:
    try:
        answer = _run(*command)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClusterError(f"{command[0]}: {error}") from error
    if answer.returncode:
        raise ClusterError(f"{' '.join(command)}: {_reason(answer.stderr)}")


def _reason(stderr: str) -> str:
    """The last line, which names the cause, without the name of the program."""
    lines = stderr.strip().splitlines() or ["no reason given"]
    return lines[-1].split("error: ", 1)[-1]


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
