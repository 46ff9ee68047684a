"""Records as JSON: one strict writer, one tolerant reader.

A file may be cut short by a full disk or a power cut, edited by a person, or written by a newer
version. A reader takes what is no record for one that is not there: it must not keep the supervisor
from its work, nor one broken run from the list of all. Numbers that are not finite are written as
Python's `json` writes them (NaN, Infinity) and read back as such; null, which earlier versions
wrote for them, is read as NaN.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from pipeline.rundir import durable

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A float that need not be finite."""


class Record(BaseModel):
    """Base of all records; keys that this version does not know are ignored."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
        ser_json_inf_nan="constants",
    )


R = TypeVar("R", bound=BaseModel)


def write(path: Path, record: BaseModel) -> None:
    """Replace `path` by the record in one step."""
    durable.write_text(path, record.model_dump_json(indent=1) + "\n")


def read(path: Path, kind: type[R]) -> R | None:
    """The record in `path`; None when there is none, or not a whole one."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def append(path: Path, record: BaseModel) -> None:
    """Add a line to a .jsonl file; it is on the disk when this returns."""
    text = record.model_dump_json() + "\n"
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            # Half a line at the end would take this one with it.
            if file.read(1) != b"\n":
                text = "\n" + text
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path, kind: type[R]) -> list[R]:
    """The records of a .jsonl file, oldest first; lines that are none are left out."""
    rows = []
    for line in lines(path):
        try:
            rows.append(kind.model_validate_json(line))
        except ValidationError:
            continue
    return rows


def lines(path: Path) -> list[bytes]:
    """The lines of a file that are not empty; [] when there is no such file."""
    try:
        content = path.read_bytes()
    except OSError:
        return []
    # Of bytes: a text would also be split at every Unicode line separator in a reason.
    return [line for line in content.split(b"\n") if line.strip()]
