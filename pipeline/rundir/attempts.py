"""attempts.jsonl: how each attempt of a run ended, and what was done about it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pydantic import Field

from pipeline.rundir import records
from pipeline.rundir.paths import ATTEMPTS_FILE
from pipeline.rundir.records import Record

ATTEMPT_VARIABLE = "VMP_ATTEMPT"


def attempt_id() -> str:
    """Tells this attempt of a SLURM job from earlier ones; set by `slurm.job`, empty elsewhere."""
    return os.environ.get(ATTEMPT_VARIABLE, "")


class Attempt(Record):
    """One job, or one stay in the queue of a job that was requeued, once it has ended."""

    job_id: str
    restart: int = 0
    """How often SLURM had started the job before."""
    stop_class: str
    """Of its end, see `StopClass`."""
    reason: str = ""
    node: str | None = None
    """The node at fault, when one is."""
    step: int = -1
    """Of the newest committed checkpoint at the end; -1 = none."""
    action: str = ""
    time: float = Field(default_factory=time.time)


def append_attempt(run_dir: Path, attempt: Attempt) -> None:
    """Add a line; it is on the disk when this returns."""
    records.append(run_dir / ATTEMPTS_FILE, attempt)


def read_attempts(run_dir: Path) -> list[Attempt]:
    """All attempts that have ended, oldest first."""
    return records.read_lines(run_dir / ATTEMPTS_FILE, Attempt)
