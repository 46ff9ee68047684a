"""Decides what follows each kind of end: requeue, requeue elsewhere, or stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from pipeline.rundir import Attempt, End, StopClass

STOPPED_IN_TIME = frozenset({StopClass.PREEMPTED, StopClass.TIME_LIMIT})
"""Ends after a committed checkpoint: the run resumes as soon as the queue allows."""
FAULTS = frozenset({StopClass.NODE_FAULT, StopClass.HANG})
"""Ends that are retried a limited number of times, elsewhere if a node is to blame."""
ADVICE = {
    StopClass.CANCELLED: "it was asked to stay down; the same command goes on",
    StopClass.CONFIGURATION: "the same input would fail again: correct it and submit again",
    StopClass.NON_FINITE: "the same numbers would come again: lower optim.lr, or allow "
    "guard.max_skipped_in_a_row, and submit again",
    StopClass.DIVERGED: "the same steps would spike again: start another run with a lower "
    "optim.lr or optim.clip_grad, or allow more stability.max_rollbacks and submit again",
    StopClass.OUT_OF_MEMORY: "it would run out of memory again: lower batch.max_micro, raise "
    "engine.zero_stage or ask for more memory, and submit again",
    StopClass.DISK_FULL: "free space, or move the run; older checkpoints are intact; submit again",
    StopClass.CRASH: "an unknown error is not retried: read the traceback in the log and submit "
    "again",
}
"""Ends that are not retried, with advice for the user."""


class RetryPolicy(BaseModel):
    """Limits on how often and how quickly a run is retried."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_requeues: int = Field(default=100, ge=0)
    """How often one job may be requeued, for any reason."""
    max_faults: int = Field(default=3, ge=0)
    """How many node faults and hangs in a row, without a newer checkpoint between, are retried."""
    backoff_s: int = Field(default=60, ge=0)
    """Wait before the second retry in a row; it doubles with each further retry."""
    max_backoff_s: int = Field(default=1800, ge=0)
    exclude_faulty: bool = True
    """Retry without the node at fault if the partition has enough other nodes."""


class Decision(NamedTuple):
    """The answer to an end."""

    requeue: bool
    why: str
    delay_s: int = 0
    exclude: str | None = None


def decide(
    end: End, history: Sequence[Attempt], step: int, restarts: int, policy: RetryPolicy
) -> Decision:
    """Decide what follows `end`.

    Args:
        history: the earlier attempts of the run, oldest first.
        step: the step of the newest committed checkpoint, -1 without one.
        restarts: how often the job has been requeued.
    """
    if end.stop_class in ADVICE:
        return Decision(False, ADVICE[end.stop_class])
    if end.stop_class not in STOPPED_IN_TIME | FAULTS:
        return Decision(False, "the run is finished")
    if restarts >= policy.max_requeues:
        return Decision(False, f"it was requeued max_requeues={policy.max_requeues} times already")
    if end.stop_class in STOPPED_IN_TIME:
        return Decision(True, "a checkpoint is committed")
    faults = 1 + _faults_in_a_row(history, step)
    if faults > policy.max_faults:
        return Decision(
            False, f"{faults} faults in a row without progress (max_faults={policy.max_faults})"
        )
    delay_s = 0 if faults == 1 else policy.backoff_s * 2 ** (faults - 2)
    return Decision(
        True,
        f"fault {faults} of {policy.max_faults} in a row",
        min(delay_s, policy.max_backoff_s),
        end.node if policy.exclude_faulty else None,
    )


def _faults_in_a_row(history: Sequence[Attempt], step: int) -> int:
    """The number of faults at the end of `history` without a newer checkpoint since."""
    count = 0
    for attempt in reversed(history):
        if attempt.stop_class not in FAULTS or attempt.step < step:
            break
        count += 1
    return count
