"""Means over seeds with 95 % intervals, and the effect of a factor with the seed as the unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; from any table.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


class Estimate(NamedTuple):
    """A mean over seeds. `half` is half the width of its 95 % interval; None with one seed."""

    mean: float
    half: float | None
    runs: int

    def percent(self, *, signed: bool = False) -> str:
        """`91.2 ± 1.3`, in percent or points."""
        mean = f"{100 * self.mean:{'+' if signed else ''}.1f}"
        return mean if self.half is None else f"{mean} ± {100 * self.half:.1f}"

    @property
    def excludes_zero(self) -> bool:
        return self.half is not None and abs(self.mean) > self.half


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and t interval of one value per seed; None without values.

    The interval speaks of other seeds on the same clips, not of other clips.
    """
    count = len(values)
    if count == 0:
        return None
    mean = sum(values) / count
    if count == 1:
        return Estimate(mean, None, 1)
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    quantile = _T[min(count - 1, len(_T)) - 1]
    return Estimate(mean, quantile * math.sqrt(variance / count), count)
