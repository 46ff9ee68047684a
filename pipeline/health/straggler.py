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

from pipeline.training.distributed import World, from_all_ranks, sum_over_ranks

logger = logging.getLogger(__name__)

# Comparisons in which the same rank lags behind before it is named, and until it is named again.
_IN_A_ROW = 3
_REMIND_EVERY = 100


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
        self._last: int | None = None
        self._in_a_row = 0

    def compare(self, own: OwnTime) -> None:
        """One line on rank 0 when a rank lags behind. Collective; no device is waited for."""
        table = torch.zeros(self._world.size, 2, dtype=torch.float64)
        table[self._world.rank] = torch.tensor(own)
        times = [OwnTime(*row) for row in sum_over_ranks(table).tolist()]
        rank = straggler(times, self._factor)
        self._in_a_row = self._in_a_row + 1 if rank == self._last else 1
        self._last = rank
        # Once is noise; always is known by now.
        if rank is not None and self._world.is_main and _is_news(self._in_a_row):
            logger.warning("%s", describe(rank, times, self._hosts, self._factor))


def _is_news(in_a_row: int) -> bool:
    return in_a_row == _IN_A_ROW or in_a_row % _REMIND_EVERY == 0


def straggler(times: Sequence[OwnTime], factor: float) -> int | None:
    """The slowest rank, when it takes more than `factor` times as long as the median.

    Of an even number of ranks the faster middle one counts, so that one of two can lag behind.
    """
    rank = max(range(len(times)), key=lambda r: times[r].total_s)
    return rank if times[rank].total_s > factor * _median_s(times) else None


def _median_s(times: Sequence[OwnTime]) -> float:
    return statistics.median_low(time.total_s for time in times)


def describe(rank: int, times: Sequence[OwnTime], hosts: Sequence[str], factor: float) -> str:
    """The line about a straggler: where it is and what takes its time."""
    slowest = times[rank]
    return (
        f"straggler: rank {rank} on {hosts[rank]} needs {slowest.total_s:.3g} s a step for itself "
        f"({slowest.data_s:.3g} s for data, {slowest.forward_s:.3g} s forward), the median rank "
        f"{_median_s(times):.3g} s (health.straggler_factor={factor:g})"
    )
