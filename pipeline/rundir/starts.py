"""starts.jsonl: how each attempt of a run began, from which step and with how many ranks.

Rank 0 writes a line before it drops what earlier attempts logged after that step, so that every
discarded step is accounted for. Older runs have no such file.
"""

from __future__ import annotations

import time
from pathlib import Path

from pydantic import Field

from pipeline.rundir import records
from pipeline.rundir.attempts import attempt_id
from pipeline.rundir.paths import STARTS_FILE
from pipeline.rundir.records import Record


class Start(Record):
    """The beginning of one attempt, after it has loaded its checkpoint."""

    step: int
    """Optimizer steps done before; 0 without a checkpoint."""
    world_size: int
    micro_batch: int
    """Samples of one rank per forward pass."""
    logs_samples: bool
    """Whether the attempt writes sample logs."""
    discarded: dict[int, int] = Field(default_factory=dict)
    """Step -> samples that an earlier attempt logged for it and that no checkpoint keeps."""
    attempt: str = Field(default_factory=attempt_id)
    """Id of the attempt, see `attempt_id`."""
    time: float = Field(default_factory=time.time)


def append_start(run_dir: Path, start: Start) -> None:
    """Append a start; the line is on disk when this returns."""
    records.append(run_dir / STARTS_FILE, start)


def read_starts(run_dir: Path) -> list[Start]:
    """Return the starts of all attempts, oldest first."""
    return records.read_lines(run_dir / STARTS_FILE, Start)
