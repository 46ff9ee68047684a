"""The end of an attempt: a class for the policy, and a one-line reason for the user."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class StopClass(StrEnum):
    """Classes of ends; `slurm.policy` and docs/operations.md tell what follows each of them."""

    FINISHED = "finished"
    PREEMPTED = "preempted"
    TIME_LIMIT = "time_limit"
    CANCELLED = "cancelled"
    NODE_FAULT = "node_fault"
    """A device, a node or a process died, or a node failed its preflight."""
    HANG = "hang"
    """No step for `health.hang_timeout_s`."""
    NON_FINITE = "non_finite"
    DIVERGED = "diverged"
    """The loss spiked once more than `stability.max_rollbacks` allows."""
    CONFIGURATION = "configuration"
    """Bad input, such as a recipe, data and a checkpoint that do not fit together."""
    OUT_OF_MEMORY = "out_of_memory"
    DISK_FULL = "disk_full"
    CRASH = "crash"
    """Any other exception, which is most likely a bug."""


class End(NamedTuple):
    """How an attempt ended."""

    stop_class: StopClass
    reason: str = ""
    node: str | None = None
    """The node at fault, if there is one."""


# SLURM may announce a time limit up to a minute early, and a save takes time. A stop this close to
# the deadline therefore counts as the time limit.
_EARLY_S = 90.0


def is_near(deadline: float | None, now: float) -> bool:
    """Return whether a job that ends at `now` ends because of its time limit.

    Args:
        deadline: when the run must begin to save, in seconds since the Unix epoch: the time limit
            minus the profile's `grace_s`. None = there is no limit.
        now: seconds since the Unix epoch.
    """
    return deadline is not None and now > deadline - _EARLY_S
