"""What all formats are given, and how they read a text file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import DataError


@dataclass(frozen=True, slots=True)
class Inputs:
    """Where a data set lies and how to read it."""

    videos: Path
    annotations: Path | None
    split: str
    """Name for clips whose format does not say."""
    fold: int = 1
    """Which of the official divisions (ucf101, hmdb51)."""


def require_annotations(inputs: Inputs, what: str) -> Path:
    if inputs.annotations is None:
        raise DataError(f"--annotations is missing: this format reads {what}")
    if not inputs.annotations.exists():
        raise DataError(f"--annotations {inputs.annotations}: no such file; expected {what}")
    return inputs.annotations


def read_lines(path: Path) -> Iterator[str]:
    """Lines with their ends. Bytes that are not UTF-8 survive as surrogates, as in file names."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from file
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
