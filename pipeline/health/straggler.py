"""Detection of the rank for which the others wait.

All ranks have the same step time, as each step ends in a collective. A slow rank shows in its own
time: the time that it waits for data and spends in forward passes. At ZeRO stage 3 a forward pass
gathers parameters, so only the data time tells ranks apart well.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch

from pipeline.training.distributed import World, from_all_ranks, sum_over_ranks

logger = logging.getLogger(__name__)

# A rank is named after lagging behind in this many comparisons in a row, and again after so many.
_IN_A_ROW = 3
_REMIND_EVERY = 100


class OwnTime(NamedTuple):
    """Mean time per step, in seconds, in which a rank waits for no other."""

    data_s: float
    forward_s: float

    @property
    def total_s(self) -> float:
        return self.data_s + self.forward_s


class StragglerWatch:
    """Comparison of the ranks' own times, made whenever metrics are logged."""

    def __init__(self, factor: float, world: World, host: str) -> None:
        """Gather the host names of all ranks. Collective."""
        self._factor = factor
        self._world = world
        self._hosts = from_all_ranks(host)
        self._last: int | None = None
        self._in_a_row = 0

    def compare(self, own: OwnTime) -> None:
        """Log a line on rank 0 when a rank keeps lagging. Collective; it waits for no device."""
        table = torch.zeros(self._world.size, 2, dtype=torch.float64)
        table[self._world.rank] = torch.tensor(own)
        times = [OwnTime(*row) for row in sum_over_ranks(table).tolist()]
        rank = straggler(times, self._factor)
        self._in_a_row = self._in_a_row + 1 if rank == self._last else 1
        self._last = rank
        # A single slow interval is noise, and repeating the line each time would fill the log.
        if rank is not None and self._world.is_main and _is_news(self._in_a_row):
            logger.warning("%s", describe(rank, times, self._hosts, self._factor))


def _is_news(in_a_row: int) -> bool:
    return in_a_row == _IN_A_ROW or in_a_row % _REMIND_EVERY == 0


def straggler(times: Sequence[OwnTime], factor: float) -> int | None:
    """Return the slowest rank if it takes more than `factor` times the median, else None.

    For an even number of ranks the median is the faster of the middle two, so that one of two ranks
    can lag behind.
    """
    rank = max(range(len(times)), key=lambda r: times[r].total_s)
    return rank if times[rank].total_s > factor * _median_s(times) else None


def _median_s(times: Sequence[OwnTime]) -> float:
    return statistics.median_low(time.total_s for time in times)


def describe(rank: int, times: Sequence[OwnTime], hosts: Sequence[str], factor: float) -> str:
    """Return the log line about a straggler: where it runs, and what takes its time."""
    slowest = times[rank]
    return (
        f"straggler: rank {rank} on {hosts[rank]} needs {slowest.total_s:.3g} s a step for itself "
        f"({slowest.data_s:.3g} s for data, {slowest.forward_s:.3g} s forward), the median rank "
        f"{_median_s(times):.3g} s (health.straggler_factor={factor:g})"
    )
