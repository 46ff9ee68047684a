"""The inputs of every format, and functions that read text files."""

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
    """The places of a data set and the options for reading it."""

    videos: Path
    annotations: Path | None
    split: str
    """The split of clips whose annotation names none."""
    fold: int = 1
    """The official division to use (ucf101, hmdb51)."""

    @cached_property
    def tree(self) -> Tree:
        """All files below `videos`, listed once."""
        return read_tree(self.videos)


def require_annotations(inputs: Inputs, what: str) -> Path:
    if inputs.annotations is None:
        raise DataError(f"--annotations is missing: this format reads {what}")
    if not inputs.annotations.exists():
        raise DataError(f"--annotations {inputs.annotations}: no such file; expected {what}")
    return inputs.annotations


def unique_columns(table: Path, line: int, names: Sequence[str]) -> None:
    """Raise `DataError` when two columns share a name."""
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise DataError(f"{table}:{line}: column {twice[0]!r} is there twice; remove one")


def read_lines(path: Path) -> Iterator[str]:
    """Lines with their ends. Bytes that are not UTF-8 become surrogates, as in file names."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from file
    except OSError as error:
        raise refused(error, f"{path}: cannot be read") from None
