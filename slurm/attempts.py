"""attempts.jsonl: how each attempt of a run ended, and what was done about it."""

from __future__ import annotations

import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from slurm import files

ATTEMPTS_FILE = "attempts.jsonl"


class Attempt(BaseModel):
    """One job, or one stay in the queue of a job that was requeued."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    job_id: str
    restart: int = 0
    """How often SLURM had started the job before."""
    stop_class: str
    """See `pipeline.health.failure.StopClass`."""
    reason: str = ""
    node: str | None = None
    """The node at fault, when one is."""
    step: int = -1
    """Of the newest committed checkpoint at the end; -1 = none."""
    action: str = ""
    time: float = Field(default_factory=time.time)


def append(run_dir: Path, attempt: Attempt) -> None:
    """Add a line; it is on the disk when this returns."""
    files.append(run_dir / ATTEMPTS_FILE, attempt)


def read(run_dir: Path) -> list[Attempt]:
    """All attempts that have ended, oldest first; a line cut short by a full disk is left out."""
    return files.read_lines(run_dir / ATTEMPTS_FILE, Attempt)
