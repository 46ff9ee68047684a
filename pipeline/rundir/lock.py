"""The lock of a run, which lets only one process train in a directory at a time.

The lock belongs to an open file description (OFD). The kernel releases it however the process ends
and, unlike flock, can tell whether it is held without taking it.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.rundir.attempts import attempt_id
from pipeline.rundir.exits import BAD_INPUT
from pipeline.rundir.paths import LOCK_FILE

_LOST_NODE_S = 150.0
# The fields of struct flock are l_type, l_whence, l_start, l_len (0 = the whole file) and l_pid,
# which must be 0 for an OFD lock.
_FLOCK = "hhqqi4x"


class RunInUseError(ValueError):
    """Another process is training in the run directory."""

    exit_status = BAD_INPUT


@contextmanager
def exclusive(run_dir: Path) -> Iterator[None]:
    """Hold the run's lock inside the block.

    Raises RunInUseError when another process is training in this directory.
    """
    # A file server may keep a lost node's lock for a while, so a SLURM job waits for it.
    patience_s = _LOST_NODE_S if attempt_id() else 0.0
    deadline = time.monotonic() + patience_s
    with (run_dir / LOCK_FILE).open("a+") as lock:
        while not _try(lock.fileno()):
            if time.monotonic() > deadline:
                raise _in_use(run_dir)
            time.sleep(1)
        yield


def refuse_active(run_dir: Path) -> None:
    """Raise RunInUseError if a process trains in the directory. Call this before `prepare_run`."""
    if is_active(run_dir):
        raise _in_use(run_dir)


def is_active(run_dir: Path) -> bool:
    """Return whether a process is training in the directory, without touching the lock."""
    try:
        descriptor = os.open(run_dir / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return False
    try:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        told = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked)
    finally:
        os.close(descriptor)
    return bool(struct.unpack(_FLOCK, told)[0] != fcntl.F_UNLCK)


@contextmanager
def waiting_for(path: Path) -> Iterator[None]:
    """Wait for a lock on the file `path`, created if need be, and hold it inside the block."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _try(descriptor: int) -> bool:
    wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
    except BlockingIOError:
        return False
    return True


def _in_use(run_dir: Path) -> RunInUseError:
    return RunInUseError(
        f"run directory {run_dir} is in use by another training process; wait for it, stop it, or "
        "choose another name=..."
    )
