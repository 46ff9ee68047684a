"""logs/failure-rank00000.json: how one rank failed.

When one rank dies, the others fail too, in their next collective. `first_failure` finds the failure
that caused the others.
"""

from __future__ import annotations

import socket
import time
import traceback
from pathlib import Path

from pipeline.redact import redact
from pipeline.rundir import records
from pipeline.rundir.attempts import attempt_id
from pipeline.rundir.ends import StopClass
from pipeline.rundir.paths import failure_file, of_all_ranks
from pipeline.rundir.records import Record


class Failure(Record):
    """The failure of one rank."""

    stop_class: StopClass
    error: str
    rank: int
    host: str
    time: float
    """Seconds since the Unix epoch."""
    attempt: str = ""
    """Id of the attempt, see `attempt_id`."""
    consequence: bool
    """Whether the rank failed only because another rank was gone."""
    traceback: str

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}: {self.error}"

    @classmethod
    def of(
        cls, rank: int, error: BaseException, stop_class: StopClass, *, consequence: bool = False
    ) -> Failure:
        """Build the record of a failure of this process."""
        return cls(
            stop_class=stop_class,
            error=redact(" ".join(f"{type(error).__name__}: {error}".split())),
            rank=rank,
            host=socket.gethostname(),
            time=time.time(),
            attempt=attempt_id(),
            consequence=consequence,
            traceback=redact("".join(traceback.format_exception(error))),
        )

    def write(self, run_dir: Path) -> None:
        """Write the record to the run directory; an OSError is printed, not raised."""
        try:
            records.write(failure_file(run_dir, self.rank), self)
        except OSError:  # a full disk may be the failure to record; the log has it too
            traceback.print_exc()


def first_failure(run_dir: Path, attempt: str = "") -> Failure | None:
    """Return the earliest failure that is no consequence, else the earliest one, else None."""
    paths = of_all_ranks(run_dir, failure_file(run_dir, 0))
    found = (records.read(path, Failure) for path in paths)
    mine = [failure for failure in found if failure is not None and failure.attempt == attempt]
    return min(mine, key=lambda f: (f.consequence, f.time), default=None)


def forget_failures(run_dir: Path) -> None:
    """Delete the failures of the previous attempt. Call this before any rank is started."""
    for path in of_all_ranks(run_dir, failure_file(run_dir, 0)):
        if path.is_symlink() or not path.is_dir():  # a directory is not a record
            path.unlink(missing_ok=True)
