"""logs/rank00000.json: where a rank was started and its exit status, which a killed rank lacks."""

from __future__ import annotations

from pathlib import Path

from pipeline.rundir import records
from pipeline.rundir.paths import mark_file, of_all_ranks
from pipeline.rundir.records import Record


class RankMark(Record):
    """Mark of one rank of one attempt."""

    rank: int
    node: str
    attempt: str
    status: int | None = None
    """Exit status, once the rank has ended by itself."""

    def write(self, run_dir: Path) -> None:
        records.write(mark_file(run_dir, self.rank), self)

    def left(self, run_dir: Path, status: int) -> None:
        """Record that the rank ends by itself with exit status `status`."""
        self.model_copy(update={"status": status}).write(run_dir)


def read_marks(run_dir: Path, attempt: str) -> list[RankMark]:
    """Return the readable marks of an attempt, ordered by rank."""
    paths = of_all_ranks(run_dir, mark_file(run_dir, 0))
    found = (records.read(path, RankMark) for path in paths)
    return [mark for mark in found if mark is not None and mark.attempt == attempt]
