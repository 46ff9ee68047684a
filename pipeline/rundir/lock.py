"""The lock of a run: one process trains in a directory at a time."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import RunInUseError
from pipeline.rundir.attempts import attempt_id

_LOST_NODE_S = 150.0


@contextmanager
def exclusive(run_dir: Path) -> Iterator[None]:
    """Hold the run's lock; the kernel lets go of it however this process ends.

    Raises RunInUseError when another process trains in this directory.
    """
    # A file server may keep the lock of a node that was lost for a while.
    patience_s = _LOST_NODE_S if attempt_id() else 0.0
    deadline = time.monotonic() + patience_s
    with (run_dir / ".lock").open("a+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise _in_use(run_dir) from error
            time.sleep(1)
        yield


def refuse_active(run_dir: Path) -> None:
    """Raises RunInUseError when a process trains in the directory. Call it before `prepare`."""
    if is_active(run_dir):
        raise _in_use(run_dir)


def _in_use(run_dir: Path) -> RunInUseError:
    return RunInUseError(
        f"run directory {run_dir} is in use by another training process; wait for it, stop it, or "
        "choose another name=..."
    )


def is_active(run_dir: Path) -> bool:
    """Does a process on this machine train in the directory right now?"""
    if not (run_dir / ".lock").exists():
        return False
    with (run_dir / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
