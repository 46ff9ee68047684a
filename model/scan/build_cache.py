"""The cache of compiled kernels, shared by all processes of a user."""

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from model.scan.problem import ScanError


class BuildError(ScanError):
    """Kernels could not be compiled here."""


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """Path of the file ``name`` in the cache; ``make`` writes it to the path that it is given.

    Several processes may ask at once. Each file has a lock of its own, which dies with its holder:
    one process makes the file, those that want the same file wait, and other files are made
    meanwhile. The file appears under its name when it is complete.
    """
    directory = _directory()
    path = directory / name
    if path.exists():
        return path
    lock_path = directory / f"{name}.lock"
    with lock_path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _make(path, make)
        # Whoever locks the removed file, or a new one of this name, finds the artifact made.
        lock_path.unlink(missing_ok=True)
    return path


def _make(path: Path, make: Callable[[Path], None]) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    unfinished = Path(name)
    try:
        make(unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _directory() -> Path:
    """$VIDEOMAMBAPRO_CACHE, else the user's cache directory, else a private temporary one."""
    chosen = os.environ.get("VIDEOMAMBAPRO_CACHE")
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "videomambapro"
    directory = Path(chosen) if chosen else default
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if os.access(directory, os.W_OK):
            return directory
    except OSError as error:
        if chosen:
            raise BuildError(
                f"scan: VIDEOMAMBAPRO_CACHE={chosen} cannot be used: {error}"
            ) from error
    # Another user may own a fixed name in the shared temporary directory, so this one is private.
    return Path(tempfile.mkdtemp(prefix="videomambapro-"))
