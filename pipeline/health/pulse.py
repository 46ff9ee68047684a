"""What this rank is doing at this moment: told by the training loop, read by its watchers.

Plain attributes: the loop never waits for a watcher, and a watcher that reads between two of its
assignments sees a moment that is at most one step old.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from pipeline.rundir import Phase

T = TypeVar("T")

_RECENT_STEPS = 100


class Pulse:
    """The phase, the step and the pace of one rank."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.host = socket.gethostname()
        self.pid = os.getpid()
        self.phase = Phase.START
        self.step = 0
        self.total_steps = 0
        self._step_s: deque[float] = deque(maxlen=_RECENT_STEPS)
        self.beats = 0
        """Grows whenever something was finished: a step, a batch of an evaluation, a phase."""

    def beat(self) -> None:
        self.beats += 1

    def begin(self, step: int, total_steps: int) -> None:
        """Training starts, or goes on, after `step` of `total_steps` optimizer steps."""
        self.step, self.total_steps = step, total_steps
        self.enter(Phase.TRAIN)

    def enter(self, phase: Phase) -> None:
        self.phase = phase
        self.beat()

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        before = self.phase
        self.enter(phase)
        yield
        self.enter(before)

    @contextmanager
    def timed_step(self) -> Iterator[None]:
        """Around one optimizer step."""
        begin = time.perf_counter()
        yield
        self._step_s.append(time.perf_counter() - begin)
        self.step += 1
        self.beat()

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """The items, with a beat for each that the caller is done with."""
        for item in items:
            yield item
            self.beat()

    @property
    def is_warm(self) -> bool:
        """Has a step been done: is everything read, compiled and connected?"""
        return bool(self._step_s)

    def step_s(self, percentile: float = 50) -> float | None:
        """Of the last 100 steps of this rank, in seconds; None before the first."""
        recent = list(self._step_s)
        return float(np.percentile(recent, percentile)) if recent else None

    def step_percentiles(self) -> dict[str, float]:
        """Median and 95th percentile for a row of metrics; {} before the first step."""
        found = {f"step_s_p{p}": self.step_s(p) for p in (50, 95)}
        return {name: value for name, value in found.items() if value is not None}
