"""logs/failure-rank00000.json: how one rank failed.

When one rank dies, the others fail too, in their next collective; `first_failure` tells the cause
from these consequences.
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
    """How one rank failed."""

    stop_class: StopClass
    error: str
    rank: int
    host: str
    time: float
    """Seconds since the epoch."""
    attempt: str = ""
    """See `attempt_id`."""
    consequence: bool
    """The rank only noticed that another one was gone."""
    traceback: str

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}: {self.error}"

    @classmethod
    def of(
        cls, rank: int, error: BaseException, stop_class: StopClass, *, consequence: bool = False
    ) -> Failure:
        """The failure of this process."""
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
        """Leave it in the run directory; nothing is raised when that is impossible."""
        try:
            records.write(failure_file(run_dir, self.rank), self)
        except OSError:  # a full disk is one of the failures to record; the log has it as well
            traceback.print_exc()


def first_failure(run_dir: Path, attempt: str = "") -> Failure | None:
    """The failure that caused the others: the earliest of an attempt that is no consequence."""
    paths = of_all_ranks(run_dir, failure_file(run_dir, 0))
    found = (records.read(path, Failure) for path in paths)
    mine = [failure for failure in found if failure is not None and failure.attempt == attempt]
    return min(mine, key=lambda f: (f.consequence, f.time), default=None)


def forget_failures(run_dir: Path) -> None:
    """Those of the attempt before. Call it before any rank is started."""
    for path in of_all_ranks(run_dir, failure_file(run_dir, 0)):
        if path.is_symlink() or not path.is_dir():  # a directory is no record of ours
            path.unlink(missing_ok=True)
