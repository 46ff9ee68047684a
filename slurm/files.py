"""Files that are whole or absent, for readers on other nodes, and lines that are added to a file.

A full disk or a power cut can still leave half of one. Readers take that for one that is not there:
it must not keep the supervisor from its work.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Line = TypeVar("Line", bound=BaseModel)


def replace(path: Path, text: str) -> None:
    """Put `text` in the place of `path` in one step: temporary name, fsync, rename, fsync."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`; None when there is no such file, or not a whole object in it."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def append(path: Path, line: BaseModel) -> None:
    """Add a line to a .jsonl file; it is on the disk when this returns."""
    text = line.model_dump_json() + "\n"
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            # Half a line at the end would take this one with it.
            if file.read(1) != b"\n":
                text = "\n" + text
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path, kind: type[Line]) -> list[Line]:
    """The lines of a .jsonl file that are whole, oldest first; [] when there is no such file."""
    lines = []
    # Of bytes: those of a text would end at every Unicode line separator in a reason.
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            lines.append(kind.model_validate_json(line))
        except ValidationError:
            continue
    return lines
