"""The current state of a rank, which the training loop sets and the watching threads read.

The state is kept in plain attributes without a lock, so the loop never waits for a watcher. A
watcher that reads between two assignments sees values that are at most one step old.
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
    """Phase, step and step times of one rank."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.host = socket.gethostname()
        self.pid = os.getpid()
        self.phase = Phase.START
        self.step = 0
        self.total_steps = 0
        self._step_s: deque[float] = deque(maxlen=_RECENT_STEPS)
        self.beats = 0
        """Count of finished things: steps, evaluation batches and changes of phase."""

    def beat(self) -> None:
        self.beats += 1

    def begin(self, step: int, total_steps: int) -> None:
        """Note that training starts or resumes after `step` of `total_steps` optimizer steps."""
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
        """Time one optimizer step and count it."""
        begin = time.perf_counter()
        yield
        self._step_s.append(time.perf_counter() - begin)
        self.step += 1
        self.beat()

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, with a beat after the caller is done with each."""
        for item in items:
            yield item
            self.beat()

    @property
    def is_warm(self) -> bool:
        """Whether a step has been done, after which all is read, compiled and connected."""
        return bool(self._step_s)

    def step_s(self, percentile: float = 50) -> float | None:
        """Return a percentile of this rank's last 100 step times, in seconds.

        Returns None before the first step.
        """
        recent = list(self._step_s)
        return float(np.percentile(recent, percentile)) if recent else None

    def step_percentiles(self) -> dict[str, float]:
        """Return median and 95th percentile in seconds by metric name; {} before the first step."""
        found = {f"step_s_p{p}": self.step_s(p) for p in (50, 95)}
        return {name: value for name, value in found.items() if value is not None}
