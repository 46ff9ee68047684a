"""Runs equal jobs that share their work through files as one array, and waits for all of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm import queue, snapshot
from slurm.executor import make_executor, submit_array
from slurm.profile import ClusterProfile
from slurm.record import Resources

_POLL_S = 2.0
_CPUS = 4


@dataclass(frozen=True)
class ArrayOutcome:
    """The final states of the elements of an array."""

    job_id: str
    states: dict[str, int]
    """Number of elements by their SLURM state."""
    logs: Path

    @property
    def all_completed(self) -> bool:
        return set(self.states) <= {"COMPLETED", queue.FORGOTTEN}

    def __str__(self) -> str:
        ended = ", ".join(f"{count} {state}" for state, count in self.states.items())
        return f"job {self.job_id}: {ended}; logs in {self.logs}"


def run_array(
    tasks: Sequence[Callable[[], int]],
    folder: Path,
    profile: ClusterProfile,
    *,
    name: str,
    announce: Callable[[str], None],
) -> ArrayOutcome:
    """Submit the tasks to SLURM, each as its own job on one node, and wait for all of them.

    Ctrl-C cancels the jobs. Raises ClusterError when sbatch refuses.
    """
    resources = Resources(cpus_per_task=profile.cpus_per_task or _CPUS)
    code = snapshot.take(folder)
    executor = make_executor("slurm", folder, profile, resources, name=name, code=code)
    array_id = submit_array(executor, tasks)[0].job_id.partition("_")[0]
    announce(f"submitted: job {array_id} (slurm), {len(tasks)} elements, logs in {folder}")
    try:
        while not queue.has_ended(array_id):
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        queue.cancel(array_id)
        raise
    return ArrayOutcome(array_id, dict(Counter(queue.states(array_id))), folder)
