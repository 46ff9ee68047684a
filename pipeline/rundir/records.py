"""Records as JSON, with one strict writer and one tolerant reader.

A file may be cut short by a full disk or a power cut, edited by a person, or written by a newer
version. A reader treats an invalid record as a missing one: a damaged file must not stop the
supervisor, and one damaged run must not break the list of all runs. Non-finite numbers are written
as Python's `json` writes them (NaN, Infinity) and read back as such. Earlier versions wrote null
for them, which is read as NaN.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from pipeline.rundir import durable

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A float that may be NaN or infinite."""


class Record(BaseModel):
    """Base class of all records; keys that this version does not know are ignored."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
        ser_json_inf_nan="constants",
    )


R = TypeVar("R", bound=BaseModel)


def write(path: Path, record: BaseModel) -> None:
    """Replace `path` with the record, atomically."""
    durable.write_text(path, record.model_dump_json(indent=1) + "\n")


def read(path: Path, kind: type[R]) -> R | None:
    """Return the record in `path`; None when it is missing or invalid."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def append(path: Path, record: BaseModel) -> None:
    """Append a line to a .jsonl file; it is on disk when this returns."""
    text = record.model_dump_json() + "\n"
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            # A partial last line would make this one invalid too, so it is closed first.
            if file.read(1) != b"\n":
                text = "\n" + text
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path, kind: type[R]) -> list[R]:
    """Return the records of a .jsonl file, oldest first; invalid lines are left out."""
    rows = []
    for line in lines(path):
        try:
            rows.append(kind.model_validate_json(line))
        except ValidationError:
            continue
    return rows


def lines(path: Path) -> list[bytes]:
    """Return the lines of a file that are not empty; [] when the file cannot be read."""
    try:
        content = path.read_bytes()
    except OSError:
        return []
    # Bytes are split, since splitlines() on text would also split at Unicode line separators.
    return [line for line in content.split(b"\n") if line.strip()]
