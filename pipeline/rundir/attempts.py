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
    """Return the id of this attempt of a SLURM job, which `slurm.job` sets; empty elsewhere."""
    return os.environ.get(ATTEMPT_VARIABLE, "")


class Attempt(Record):
    """One attempt that has ended: a job, or one start of a job that SLURM requeues."""

    job_id: str
    restart: int = 0
    """How many times SLURM had restarted the job."""
    stop_class: str
    """How the attempt ended, see `StopClass`."""
    reason: str = ""
    node: str | None = None
    """The node at fault, if there is one."""
    step: int = -1
    """Step of the newest checkpoint committed by the end; -1 = none."""
    action: str = ""
    time: float = Field(default_factory=time.time)


def append_attempt(run_dir: Path, attempt: Attempt) -> None:
    """Append an attempt; the line is on disk when this returns."""
    records.append(run_dir / ATTEMPTS_FILE, attempt)


def read_attempts(run_dir: Path) -> list[Attempt]:
    """Return all attempts that have ended, oldest first."""
    return records.read_lines(run_dir / ATTEMPTS_FILE, Attempt)
