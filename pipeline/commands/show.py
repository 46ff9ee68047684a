"""The work of `vmp jobs show`: all that is known of one run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import rundir
from pipeline.commands.watch import JobRow, job_row
from pipeline.rundir import Attempt, Rollback


@dataclass(frozen=True)
class JobPage:
    """A run, its attempts that have ended, and its rollbacks, oldest first."""

    run: JobRow
    attempts: list[Attempt]
    rollbacks: list[Rollback]

    def lines(self) -> Iterator[str]:
        """Yield the page for people."""
        for name, value in self.run.cells().items():
            yield f"{name:<12}{value}".rstrip()
        for attempt in self.attempts:
            yield f"{'attempt':<12}{_when(attempt.time)}  {attempt.stop_class}: {attempt.reason}"
        for rollback in self.rollbacks:
            yield f"{'rollback':<12}{_when(rollback.time)}  {rollback}"

    def as_json(self) -> dict[str, Any]:
        """Return the page for programs; a rollback has the keys of the samples left out."""
        return {
            "run": self.run,
            "attempts": [attempt.model_dump() for attempt in self.attempts],
            "rollbacks": [rollback.model_dump() for rollback in self.rollbacks],
        }


def show(run_dir: Path) -> JobPage:
    """Read the page of a run. Raises ConfigError when there is no such run."""
    return JobPage(job_row(run_dir), rundir.read_attempts(run_dir), rundir.read_rollbacks(run_dir))


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))
