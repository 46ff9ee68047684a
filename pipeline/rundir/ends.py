"""How an attempt ends: a class that a policy can act on, and one line for a person."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class StopClass(StrEnum):
    """Classes of ends; `slurm.policy` and docs/operations.md say what each is answered with."""

    FINISHED = "finished"
    PREEMPTED = "preempted"
    TIME_LIMIT = "time_limit"
    CANCELLED = "cancelled"
    NODE_FAULT = "node_fault"
    """A device, a node or a process died, or a node failed its preflight."""
    HANG = "hang"
    """No step for `health.hang_timeout_s`."""
    NON_FINITE = "non_finite"
    CONFIGURATION = "configuration"
    """Bad input: recipe, data or checkpoint contradict each other."""
    OUT_OF_MEMORY = "out_of_memory"
    DISK_FULL = "disk_full"
    CRASH = "crash"
    """Any other exception: most likely a bug."""


class End(NamedTuple):
    """How an attempt ended."""

    stop_class: StopClass
    reason: str = ""
    node: str | None = None
    """The node at fault, when one is."""


# SLURM announces a time limit up to a minute early, and a save takes its time.
_EARLY_S = 90.0


def is_near(deadline: float | None, now: float) -> bool:
    """Is the time limit of a job what ends it? The one place that judges it.

    `deadline`: when the run must begin to save, in seconds since the epoch: the time limit less the
    profile's `grace_s`; None = there is no limit.
    """
    return deadline is not None and now > deadline - _EARLY_S
