"""Writes files that are either whole or absent, whatever kills the process."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def publish(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name, flush it to disk, then rename it."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    move(temporary, path)


def move(temporary: Path, path: Path) -> None:
    """Rename a file that is already flushed, and flush the directory."""
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def replace(path: Path, content: bytes) -> None:
    """Write as `publish` does, but without flushing, where a machine crash may lose the file."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
