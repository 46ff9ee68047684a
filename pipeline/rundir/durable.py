"""Files that are whole or absent, whatever moment the power goes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Replace `path` by `content` in one step: temporary name, fsync, rename, fsync."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, content: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(content)
    sync_file(temporary)
    rename(temporary, path)


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
