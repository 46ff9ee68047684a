"""Asking a run to stop: signals and the wall clock set a flag, all ranks act on it together.

A signal handler that saved by itself would hang: the save is collective and only some ranks may
have been signalled. See docs/training.md.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

from pydantic import BaseModel, ConfigDict, Field

# USR2: Submitit's time-out and preemption signal. TERM: what clusters without a user signal send.
SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class StopConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    after_s: float | None = Field(default=None, gt=0)
    """Stop and save after this many seconds, well before the scheduler would kill the job."""


class Stopper:
    """Remembers why this rank was asked to stop. Use as a context manager around training."""

    def __init__(self, config: StopConfig) -> None:
        self.reason: str | None = None
        self._deadline = None if config.after_s is None else time.monotonic() + config.after_s
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Stopper:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or f"signal {signal.Signals(number).name}"

    @property
    def requested(self) -> bool:
        """Does this rank want to stop? The others may not know yet."""
        if self.reason is None and self._deadline is not None and time.monotonic() > self._deadline:
            self.reason = "time limit stop.after_s"
        return self.reason is not None
