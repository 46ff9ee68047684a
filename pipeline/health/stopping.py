"""Stop requests: signals and the wall clock set a flag, on which all ranks act together.

A signal handler must not save by itself. The save is collective, and it would hang if only some
ranks received the signal. See docs/training.md.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

from pipeline.health.config import StopConfig
from pipeline.rundir import End, StopClass
from pipeline.rundir.ends import is_near

# Submitit uses USR2 for time-out and preemption; clusters without a user signal send TERM.
SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class Stopper:
    """Context manager around training that notes whether and why this rank was asked to stop."""

    def __init__(self, config: StopConfig, deadline: float | None = None) -> None:
        """Take the `deadline` in seconds since the Unix epoch, when the run must begin to save."""
        self.end: End | None = None
        self._after_s = config.after_s
        self._started = time.monotonic()
        self._deadline = deadline
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Stopper:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.end is not None:
            return
        if number == signal.SIGINT:
            kind = StopClass.CANCELLED
        elif is_near(self._deadline, time.time()):
            kind = StopClass.TIME_LIMIT
        else:
            kind = StopClass.PREEMPTED
        self.end = End(kind, f"signal {signal.Signals(number).name}")

    @property
    def requested(self) -> bool:
        """Whether this rank was asked to stop; the other ranks may not know yet."""
        if self.end is None and self._deadline is not None and time.time() > self._deadline:
            self.end = End(StopClass.TIME_LIMIT, "the job's time limit is near")
        ran_s = time.monotonic() - self._started
        if self.end is None and self._after_s is not None and ran_s > self._after_s:
            self.end = End(StopClass.TIME_LIMIT, "time limit stop.after_s")
        return self.end is not None
