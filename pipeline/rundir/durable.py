"""Files that are whole or absent, whatever moment the power goes."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Replace `path` by `content` in one step: temporary name, fsync, rename, fsync."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, content: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(content, encoding="utf-8")
        sync_file(temporary)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    rename(temporary, path)


def write_text_even_on_a_full_disk(path: Path, content: str) -> None:
    """As `write_text`; where that fails for want of space, over the old content.

    A small file that is overwritten needs no new block on most file systems. Half of it would be
    JSON that nobody can read, which readers take for no record.
    """
    try:
        write_text(path, content)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not path.is_file():
            raise
        with path.open("r+b") as file:
            file.write(content.encode().ljust(path.stat().st_size))
            file.flush()
            os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Rename within one directory and make the new name durable."""
    # Opened before: who waits for the new name may move the directory as soon as it is there.
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        source.rename(target)
        os.fsync(directory)
    finally:
        os.close(directory)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())
