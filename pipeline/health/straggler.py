"""Which rank the others wait for.

All ranks have the same step time, as each step ends in a collective. What tells them apart is the
time in which a rank needs nobody: waiting for its data, and its forward passes. (Under ZeRO-3 a
forward pass gathers parameters, so that only the data are told apart well.)
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch

from pipeline.distributed import World, from_all_ranks, sum_over_ranks

logger = logging.getLogger(__name__)


class OwnTime(NamedTuple):
    """Mean seconds per step in which a rank waits for no other."""

    data_s: float
    forward_s: float

    @property
    def total_s(self) -> float:
        return self.data_s + self.forward_s


class StragglerWatch:
    """Compares the ranks whenever metrics are logged."""

    def __init__(self, factor: float, world: World, host: str) -> None:
        """Collective."""
        self._factor = factor
        self._world = world
        self._hosts = from_all_ranks(host)

    def compare(self, own: OwnTime) -> None:
        """One line on rank 0 when a rank lags behind. Collective; no device is waited for."""
        table = torch.zeros(self._world.size, 2, dtype=torch.float64)
        table[self._world.rank] = torch.tensor(own)
        times = [OwnTime(*row) for row in sum_over_ranks(table).tolist()]
        line = straggler(times, self._hosts, self._factor)
        if line and self._world.is_main:
            logger.warning("%s", line)


def straggler(times: Sequence[OwnTime], hosts: Sequence[str], factor: float) -> str | None:
    """What to say about the slowest rank when it takes `factor` times as long as the median.

    Of an even number of ranks the faster middle one counts, so that one of two can lag behind.
    """
    median = statistics.median_low(time.total_s for time in times)
    rank = max(range(len(times)), key=lambda r: times[r].total_s)
    slowest = times[rank]
    if slowest.total_s <= factor * median:
        return None
    return (
        f"straggler: rank {rank} on {hosts[rank]} needs {slowest.total_s:.3g} s a step for itself "
        f"({slowest.data_s:.3g} s for data, {slowest.forward_s:.3g} s forward), the median rank "
        f"{median:.3g} s (health.straggler_factor={factor:g})"
    )
