"""How an attempt ended: what it has left, read once, and rules that are asked in their order."""

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

# slurmstepd's words of two generations, and srun's.
_OOM_KILL = re.compile(rb"oom[-_]kill event|: Out Of Memory$", re.MULTILINE)


@dataclass(frozen=True)
class Evidence:
    """What is known of an attempt when all its ranks are gone."""

    status: RunStatus
    """Rank 0's last word in this attempt; its state is NEW when it said nothing."""
    failure: Failure | None
    """The failure that caused the others, or the first of them."""
    ranks: tuple[RankMark, ...]
    """Those that have started."""
    missing: int
    """Ranks that have not."""
    srun_status: int
    may_requeue: bool
    """False once somebody asked the job to stay down."""
    limit_is_near: bool
    """The time limit of the job is about to strike, or has."""
    kernel_killed: bool
    """SLURM tells of tasks that the kernel killed for their memory."""

    @property
    def killed(self) -> list[RankMark]:
        """Ranks that have started and left without a word."""
        return [mark for mark in self.ranks if mark.status is None]

    @property
    def how(self) -> str:
        """How srun ended."""
        number = self.srun_status - 128
        known = {int(s): s.name for s in signal.Signals}
        named = f"killed by {known[number]}" if number in known else None
        return named or f"srun status {self.srun_status}"


def gather(
    run_dir: Path, attempt: str, srun_status: int, job: Mapping[str, str], record: JobRecord
) -> Evidence:
    """The evidence of `attempt`; `job`: the fields of `scontrol show job`."""
    ranks = tuple(read_marks(run_dir, attempt))
    # The record may be a default one, see `read_record`.
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
    """When the time limit of a job strikes, in seconds since the epoch; None without a limit."""
    try:
        return datetime.fromisoformat(job["EndTime"]).timestamp()
    except (KeyError, ValueError):
        return None


def _tells_of_memory(log: Path) -> bool:
    """Whether SLURM has written to the job's log that the kernel killed tasks for their memory.

    The log is of all attempts, but one that ends so is the last.
    """
    try:
        return _OOM_KILL.search(log.read_bytes()) is not None
    except OSError:
        return False


# --- the rules: each an End, or None when it does not apply ---------------------------------------


def finished(found: Evidence) -> End | None:
    """Rank 0 says that the schedule is at its end."""
    if found.status.state is State.FINISHED:
        return End(StopClass.FINISHED, found.status.reason)
    return None


def asked_to_stay_down(found: Evidence) -> End | None:
    """The run saved and stopped, and somebody had taken back the job's leave to be requeued."""
    if found.status.state is State.STOPPED and not found.may_requeue:
        return End(StopClass.CANCELLED, found.status.reason)
    return None


def stopped_with_a_checkpoint(found: Evidence) -> End | None:
    """The run saved and stopped: for the time limit, if that is near, else for what rank 0 says."""
    if found.status.state is not State.STOPPED:
        return None
    said = found.status.stop_class or StopClass.PREEMPTED
    return End(StopClass.TIME_LIMIT if found.limit_is_near else said, found.status.reason)


def killed_by_a_person(found: Evidence) -> End | None:
    """`vmp jobs cancel` killed the ranks and said so in their place."""
    if found.status.state is State.CANCELLED:
        return End(StopClass.CANCELLED, found.status.reason)
    return None


def failed_rank(found: Evidence) -> End | None:
    """A rank failed by itself; or all hung, each waiting for another."""
    failure = found.failure
    if failure is None or (failure.consequence and failure.stop_class is not StopClass.HANG):
        return None
    node = next((m.node for m in found.ranks if m.rank == failure.rank), failure.host)
    is_to_blame = failure.stop_class is StopClass.NODE_FAULT
    reason = f"rank {failure.rank} on {node}: {failure.error}"
    return End(failure.stop_class, reason, node if is_to_blame else None)


def lost_a_loader_for_memory(found: Evidence) -> End | None:
    """A rank has lost a process of its own, and SLURM tells that the kernel killed it."""
    failure = found.failure
    if failure is None or failure.consequence or failure.stop_class is not StopClass.NODE_FAULT:
        return None
    if not found.kernel_killed:
        return None
    return End(StopClass.OUT_OF_MEMORY, f"{failure}, which the kernel killed (oom_kill)")


def left_before_training(found: Evidence) -> End | None:
    """All ranks have started and left by themselves, one of them because of a signal.

    srun tells the others to leave when one is gone: were one gone, their word would prove nothing.
    """
    if found.killed or found.missing or all(m.status != RESUMABLE for m in found.ranks):
        return None
    kind = StopClass.TIME_LIMIT if found.limit_is_near else StopClass.PREEMPTED
    return End(kind, "a signal before training")


def did_not_start(found: Evidence) -> End | None:
    """Ranks are missing: the log says why, and no node that works is blamed."""
    if not found.missing:
        return None
    reason = f"{found.missing} of the ranks did not start ({found.how}): see the log"
    return End(StopClass.NODE_FAULT, reason)


def killed_for_memory(found: Evidence) -> End | None:
    """A rank left without a word, and SLURM tells that the kernel killed it."""
    if not found.killed or not found.kernel_killed:
        return None
    reason = f"{_names(found.killed)} ended for want of host memory (oom_kill)"
    return End(StopClass.OUT_OF_MEMORY, reason)


def killed_rank(found: Evidence) -> End | None:
    """Ranks left without a word; their node is to blame when it is one.

    Its peers may have been killed for waiting for it: then nobody knows which it was.
    """
    if not found.killed:
        return None
    nodes = {mark.node for mark in found.killed}
    reason = f"{_names(found.killed)} ended without a word ({found.how})"
    return End(StopClass.NODE_FAULT, reason, nodes.pop() if len(nodes) == 1 else None)


def lost_each_other(found: Evidence) -> End:
    """All that is left: every rank only noticed that another one was gone."""
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
"""What rank 0 said comes before what a rank left, and that before what can be concluded."""


def judge(found: Evidence) -> End:
    """The end that the first rule which applies makes of the evidence."""
    ends = (rule(found) for rule in RULES)
    return next(end for end in ends if end is not None)


def _names(marks: list[RankMark]) -> str:
    return ", ".join(f"rank {mark.rank} on {mark.node}" for mark in marks)
