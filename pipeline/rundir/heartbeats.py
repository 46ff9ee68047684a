"""logs/heartbeat-rank00000.json: signs of life of the ranks of a node, for readers outside.

One file per node, named by its first rank. It is telemetry: not synced to the disk, and a write
that fails is made up for by the next one.
"""

from __future__ import annotations

from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from pipeline.rundir import records
from pipeline.rundir.paths import heartbeat_file, of_all_ranks
from pipeline.rundir.records import Record


class Phase(StrEnum):
    """What a rank is busy with."""

    START = "start"
    TRAIN = "train"
    SAVE = "save"
    EVAL = "eval"
    END = "end"


class Heartbeat(Record):
    """What one rank was doing at `time`."""

    rank: int
    host: str
    pid: int
    phase: Phase
    step: int
    """Optimizer steps done."""
    total_steps: int
    """0 until the data is open."""
    step_s: float | None
    """Median of the last 100 steps; None before the first."""
    time: float
    """Seconds since the epoch, by the clock of `host`."""
    others: tuple[Heartbeat, ...] = ()
    """Of the other ranks of its node."""

    def write(self, run_dir: Path) -> None:
        path = heartbeat_file(run_dir, self.rank)
        temporary = path.with_suffix(f".{self.pid}.tmp")
        with suppress(OSError):
            temporary.write_text(self.model_dump_json())
            temporary.rename(path)


def read_heartbeat(run_dir: Path, rank: int = 0) -> Heartbeat | None:
    """The newest of one rank; None before the first."""
    return records.read(heartbeat_file(run_dir, rank), Heartbeat)


def read_heartbeats(run_dir: Path) -> list[Heartbeat]:
    """The newest of every rank, in the order of the ranks; [] before the first.

    A dead rank leaves its last one: compare `time` with the clock.
    """
    newest: dict[int, Heartbeat] = {}
    for path in of_all_ranks(run_dir, heartbeat_file(run_dir, 0)):
        first = records.read(path, Heartbeat)
        for beat in () if first is None else (first, *first.others):
            if beat.rank not in newest or newest[beat.rank].time < beat.time:
                newest[beat.rank] = beat.model_copy(update={"others": ()})
    return [newest[rank] for rank in sorted(newest)]


def forget_heartbeats(run_dir: Path, from_rank: int) -> None:
    """Those of an earlier attempt that had more ranks, or other first ranks."""
    for path in of_all_ranks(run_dir, heartbeat_file(run_dir, 0)):
        first = records.read(path, Heartbeat)
        if first is not None and first.rank >= from_rank:
            path.unlink(missing_ok=True)
