"""What all formats are given, and how they read a text file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data_prep.datasets.tree import Tree, read_tree
from data_prep.errors import DataError, refused


@dataclass(frozen=True)
class Inputs:
    """Where a data set lies and how to read it."""

    videos: Path
    annotations: Path | None
    split: str
    """Name for clips whose format does not say."""
    fold: int = 1
    """Which of the official divisions (ucf101, hmdb51)."""

    @cached_property
    def tree(self) -> Tree:
        """All that lies below `videos`, read once."""
        return read_tree(self.videos)


def require_annotations(inputs: Inputs, what: str) -> Path:
    if inputs.annotations is None:
        raise DataError(f"--annotations is missing: this format reads {what}")
    if not inputs.annotations.exists():
        raise DataError(f"--annotations {inputs.annotations}: no such file; expected {what}")
    return inputs.annotations


def unique_columns(table: Path, line: int, names: Sequence[str]) -> None:
    """Raises `DataError` where two columns have one name: which of them is meant?"""
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise DataError(f"{table}:{line}: column {twice[0]!r} is there twice; remove one")


def read_lines(path: Path) -> Iterator[str]:
    """Lines with their ends. Bytes that are not UTF-8 survive as surrogates, as in file names."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from file
    except OSError as error:
        raise refused(error, f"{path}: cannot be read") from None
