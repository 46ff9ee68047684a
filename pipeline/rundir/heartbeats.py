"""logs/heartbeat-rank00000.json: what the ranks of a node are doing, for readers outside the job.

Each node has one file, named after its first rank. The files are telemetry: they are not synced to
disk, and a failed write does not matter because the next one follows soon.
"""

from __future__ import annotations

from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from pipeline.rundir import records
from pipeline.rundir.paths import heartbeat_file, of_all_ranks
from pipeline.rundir.records import Record


class Phase(StrEnum):
    """Phase of a rank's life."""

    START = "start"
    TRAIN = "train"
    SAVE = "save"
    EVAL = "eval"
    END = "end"


class Heartbeat(Record):
    """State of one rank at `time`."""

    rank: int
    host: str
    pid: int
    phase: Phase
    step: int
    """Optimizer steps completed."""
    total_steps: int
    """Optimizer steps of the whole run; 0 until the data is open."""
    step_s: float | None
    """Median time of the last 100 steps, in seconds; None before the first step."""
    time: float
    """Seconds since the Unix epoch, by the clock of `host`."""
    others: tuple[Heartbeat, ...] = ()
    """Heartbeats of the other ranks on the same node."""

    def write(self, run_dir: Path) -> None:
        path = heartbeat_file(run_dir, self.rank)
        temporary = path.with_suffix(f".{self.pid}.tmp")
        with suppress(OSError):
            temporary.write_text(self.model_dump_json())
            temporary.rename(path)


def read_heartbeat(run_dir: Path, rank: int = 0) -> Heartbeat | None:
    """Return the newest heartbeat of the rank's file; None before the first."""
    return records.read(heartbeat_file(run_dir, rank), Heartbeat)


def read_heartbeats(run_dir: Path) -> list[Heartbeat]:
    """Return the newest heartbeat of every rank, ordered by rank; [] before the first.

    The last heartbeat of a dead rank stays, so compare its `time` with the clock.
    """
    newest: dict[int, Heartbeat] = {}
    for path in of_all_ranks(run_dir, heartbeat_file(run_dir, 0)):
        first = records.read(path, Heartbeat)
        for beat in () if first is None else (first, *first.others):
            if beat.rank not in newest or newest[beat.rank].time < beat.time:
                newest[beat.rank] = beat.model_copy(update={"others": ()})
    return [newest[rank] for rank in sorted(newest)]


def forget_heartbeats(run_dir: Path, from_rank: int) -> None:
    """Delete the files of first ranks from `from_rank` on, left by an attempt with more ranks."""
    for path in of_all_ranks(run_dir, heartbeat_file(run_dir, 0)):
        first = records.read(path, Heartbeat)
        if first is not None and first.rank >= from_rank:
            path.unlink(missing_ok=True)
