"""Writing of files that are whole or absent, even after a power cut."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Replace `path` with `content` as JSON, atomically: temporary name, fsync, rename, fsync."""
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
    """Write as `write_text` does or, if the disk is full, over the old content in place.

    On most file systems, overwriting a small file needs no new block. If the process dies halfway,
    the file is invalid JSON, which readers treat as a missing record.
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
    # The directory is opened first, because a process that waits for the new name may move the
    # directory as soon as the name appears.
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        source.rename(target)
        os.fsync(directory)
    finally:
        os.close(directory)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())
