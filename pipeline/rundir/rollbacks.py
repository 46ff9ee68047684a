"""rollbacks.jsonl: the loss spikes after which a run went back, and the batches it left out."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from pipeline.rundir import records
from pipeline.rundir.paths import ROLLBACKS_FILE
from pipeline.rundir.records import Record


class LeftOutBatch(Record):
    """A global batch that the run does not train on."""

    step: int
    """Its optimizer step, which the schedule counts although nothing is applied in it."""
    keys: tuple[str, ...]
    """Keys of its samples, in the order of the global batch."""


class Rollback(Record):
    """One rollback. Its line is the moment from which it holds, for every later attempt."""

    step: int
    """The step that was to be done when the rollback was decided."""
    to_step: int
    """Step of the checkpoint to which the run went back."""
    reason: str
    batches: tuple[LeftOutBatch, ...]
    """The batches at fault, in the order of their steps."""
    time: float = Field(default_factory=time.time)

    def __str__(self) -> str:
        steps = ", ".join(str(batch.step) for batch in self.batches)
        return (
            f"back to step {self.to_step} at step {self.step}: {self.reason}; "
            f"left out: the batches of steps {steps}"
        )


def append_rollback(run_dir: Path, rollback: Rollback) -> None:
    """Append a rollback; the line is on disk when this returns."""
    records.append(run_dir / ROLLBACKS_FILE, rollback)


def read_rollbacks(run_dir: Path) -> list[Rollback]:
    """Return all rollbacks of the run, oldest first."""
    return records.read_lines(run_dir / ROLLBACKS_FILE, Rollback)


def left_out(rollbacks: Iterable[Rollback]) -> frozenset[int]:
    """Return the steps whose batches the rollbacks have left out."""
    return frozenset(batch.step for rollback in rollbacks for batch in rollback.batches)
