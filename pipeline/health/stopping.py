"""Asking a run to stop: signals and the wall clock set a flag, all ranks act on it together.

A signal handler that saved by itself would hang: the save is collective and only some ranks may
have been signalled. See docs/training.md.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

from pipeline.health.config import StopConfig
from pipeline.rundir import End, StopClass
from pipeline.rundir.ends import is_near

# USR2: Submitit's time-out and preemption signal. TERM: what clusters without a user signal send.
SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class Stopper:
    """Remembers why this rank was asked to stop. Use as a context manager around training."""

    def __init__(self, config: StopConfig, deadline: float | None = None) -> None:
        """`deadline`: seconds since the epoch at which the run must begin to save."""
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
        """Does this rank want to stop? The others may not know yet."""
        if self.end is None and self._deadline is not None and time.time() > self._deadline:
            self.end = End(StopClass.TIME_LIMIT, "the job's time limit is near")
        ran_s = time.monotonic() - self._started
        if self.end is None and self._after_s is not None and ran_s > self._after_s:
            self.end = End(StopClass.TIME_LIMIT, "time limit stop.after_s")
        return self.end is not None
