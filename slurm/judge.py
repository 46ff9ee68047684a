"""Judges how an attempt ended: gathers its evidence once, then applies rules in order."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pipeline.rundir import (
    End,
    Failure,
    RankMark,
    RunStatus,
    State,
    StopClass,
    first_failure,
    read_marks,
    read_status,
)
from pipeline.rundir.ends import is_near
from pipeline.rundir.exits import RESUMABLE
from slurm.record import JobRecord

# The wording of old and new versions of slurmstepd, and that of srun.
_OOM_KILL = re.compile(rb"oom[-_]kill event|: Out Of Memory$", re.MULTILINE)


@dataclass(frozen=True)
class Evidence:
    """What is known about an attempt once all its ranks have ended."""

    status: RunStatus
    """The last status that rank 0 wrote in this attempt; NEW when it wrote none."""
    failure: Failure | None
    """The failure that caused the others, or the earliest one."""
    ranks: tuple[RankMark, ...]
    """The ranks that have started."""
    missing: int
    """The number of ranks that have not started."""
    srun_status: int
    may_requeue: bool
    """False once somebody has told SLURM not to requeue the job."""
    limit_is_near: bool
    """Whether the job is about to reach its time limit, or has reached it."""
    kernel_killed: bool
    """Whether SLURM reports that the kernel killed tasks because of their memory."""

    @property
    def killed(self) -> list[RankMark]:
        """The ranks that started and ended without recording a status."""
        return [mark for mark in self.ranks if mark.status is None]

    @property
    def how(self) -> str:
        """A description of how srun ended."""
        number = self.srun_status - 128
        known = {int(s): s.name for s in signal.Signals}
        named = f"killed by {known[number]}" if number in known else None
        return named or f"srun status {self.srun_status}"


def gather(
    run_dir: Path, attempt: str, srun_status: int, job: Mapping[str, str], record: JobRecord
) -> Evidence:
    """Gather the evidence of `attempt`. `job` holds the fields of `scontrol show job`."""
    ranks = tuple(read_marks(run_dir, attempt))
    # The record may hold defaults, see `read_record`.
    expected = record.resources.nodes * record.resources.ranks_per_node
    limit = ends_at(job)
    return Evidence(
        status=read_status(run_dir).of_attempt(attempt),
        failure=first_failure(run_dir, attempt),
        ranks=ranks,
        missing=max(0, expected - len(ranks)),
        srun_status=srun_status,
        may_requeue=job.get("Requeue") != "0",
        limit_is_near=is_near(None if limit is None else limit - record.grace_s, time.time()),
        kernel_killed=_tells_of_memory(record.log),
    )


def ends_at(job: Mapping[str, str]) -> float | None:
    """The time limit of a job in seconds since the epoch, or None when it has no limit."""
    try:
        return datetime.fromisoformat(job["EndTime"]).timestamp()
    except (KeyError, ValueError):
        return None


def _tells_of_memory(log: Path) -> bool:
    """Whether SLURM wrote to the job's log that the kernel killed tasks because of their memory.

    The log covers all attempts, but an attempt that ends this way is the last one.
    """
    try:
        return _OOM_KILL.search(log.read_bytes()) is not None
    except OSError:
        return False


# Each rule below returns an End, or None when it does not apply.


def finished(found: Evidence) -> End | None:
    """Rank 0 reported that it reached the end of the schedule."""
    if found.status.state is State.FINISHED:
        return End(StopClass.FINISHED, found.status.reason)
    return None


def asked_to_stay_down(found: Evidence) -> End | None:
    """The run saved and stopped, and somebody had forbidden SLURM to requeue the job."""
    if found.status.state is State.STOPPED and not found.may_requeue:
        return End(StopClass.CANCELLED, found.status.reason)
    return None


def stopped_with_a_checkpoint(found: Evidence) -> End | None:
    """The run saved and stopped: at the time limit if that is near, else as rank 0 reported."""
    if found.status.state is not State.STOPPED:
        return None
    said = found.status.stop_class or StopClass.PREEMPTED
    return End(StopClass.TIME_LIMIT if found.limit_is_near else said, found.status.reason)


def killed_by_a_person(found: Evidence) -> End | None:
    """`vmp jobs cancel` killed the ranks and recorded that on their behalf."""
    if found.status.state is State.CANCELLED:
        return End(StopClass.CANCELLED, found.status.reason)
    return None


def failed_rank(found: Evidence) -> End | None:
    """A rank failed on its own, or all ranks hung while waiting for each other."""
    failure = found.failure
    if failure is None or (failure.consequence and failure.stop_class is not StopClass.HANG):
        return None
    node = next((m.node for m in found.ranks if m.rank == failure.rank), failure.host)
    is_to_blame = failure.stop_class is StopClass.NODE_FAULT
    reason = f"rank {failure.rank} on {node}: {failure.error}"
    return End(failure.stop_class, reason, node if is_to_blame else None)


def lost_a_loader_for_memory(found: Evidence) -> End | None:
    """A rank lost a loader process, and SLURM reports that the kernel killed it."""
    failure = found.failure
    if failure is None or failure.consequence or failure.stop_class is not StopClass.NODE_FAULT:
        return None
    if not found.kernel_killed:
        return None
    return End(StopClass.OUT_OF_MEMORY, f"{failure}, which the kernel killed (oom_kill)")


def left_before_training(found: Evidence) -> End | None:
    """All ranks started and ended in an orderly way, at least one of them because of a signal.

    srun signals the other ranks when one dies, so if any rank had died, the status of the others
    would prove nothing.
    """
    if found.killed or found.missing or all(m.status != RESUMABLE for m in found.ranks):
        return None
    kind = StopClass.TIME_LIMIT if found.limit_is_near else StopClass.PREEMPTED
    return End(kind, "a signal before training")


def did_not_start(found: Evidence) -> End | None:
    """Some ranks did not start. The log says why; no node takes the blame."""
    if not found.missing:
        return None
    reason = f"{found.missing} of the ranks did not start ({found.how}): see the log"
    return End(StopClass.NODE_FAULT, reason)


def killed_for_memory(found: Evidence) -> End | None:
    """A rank ended without a status, and SLURM reports that the kernel killed it."""
    if not found.killed or not found.kernel_killed:
        return None
    reason = f"{_names(found.killed)} ended for want of host memory (oom_kill)"
    return End(StopClass.OUT_OF_MEMORY, reason)


def killed_rank(found: Evidence) -> End | None:
    """Ranks ended without a status; if they share one node, that node takes the blame.

    On several nodes it is unknown which rank died first: srun kills the peers that wait for it.
    """
    if not found.killed:
        return None
    nodes = {mark.node for mark in found.killed}
    reason = f"{_names(found.killed)} ended without a word ({found.how})"
    return End(StopClass.NODE_FAULT, reason, nodes.pop() if len(nodes) == 1 else None)


def lost_each_other(found: Evidence) -> End:
    """The remaining case: every rank merely noticed that another one was gone."""
    where = "" if found.failure is None else f": rank {found.failure.rank}: {found.failure.error}"
    return End(StopClass.NODE_FAULT, f"the ranks lost each other{where}")


RULES: tuple[Callable[[Evidence], End | None], ...] = (
    finished,
    asked_to_stay_down,
    stopped_with_a_checkpoint,
    killed_by_a_person,
    lost_a_loader_for_memory,
    failed_rank,
    left_before_training,
    did_not_start,
    killed_for_memory,
    killed_rank,
    lost_each_other,
)
"""The status of rank 0 counts before the records of other ranks, and records before inference."""


def judge(found: Evidence) -> End:
    """Return the end that the first applicable rule finds."""
    ends = (rule(found) for rule in RULES)
    return next(end for end in ends if end is not None)


def _names(marks: list[RankMark]) -> str:
    return ", ".join(f"rank {mark.rank} on {mark.node}" for mark in marks)
