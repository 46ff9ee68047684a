"""attempts.jsonl: how each attempt of a run ended, and what was done about it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

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
    with (run_dir / ATTEMPTS_FILE).open("a") as file:
        file.write(attempt.model_dump_json() + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(run_dir: Path) -> list[Attempt]:
    """All attempts that have ended, oldest first; a line cut short by a full disk is left out."""
    path = run_dir / ATTEMPTS_FILE
    attempts = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            attempts.append(Attempt.model_validate_json(line))
        except ValidationError:
            continue
    return attempts
