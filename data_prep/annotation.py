"""The types into which every annotation format is read."""

from __future__ import annotations

import re
from dataclasses import dataclass

from data_prep.schema import SPLIT_PATTERN

VIDEO_SUFFIXES = frozenset(
    [
        ".3gp",
        ".asf",
        ".avi",
        ".flv",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".ogv",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
    ]
)
IMAGE_SUFFIXES = frozenset([".bmp", ".jpeg", ".jpg", ".png", ".webp"])

HARMLESS = frozenset({"duplicate_row", "in_other_split", "outside", "unknown_suffix"})
"""Codes of left-out inputs that do not suggest a fault in the data set."""

SPLIT_NAME = re.compile(SPLIT_PATTERN)
"""The name of a split is part of file names: those of shards, plans and caches."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """One clip as its annotation lists it."""

    path: str
    """Relative to the video directory, or absolute."""
    label: str | None
    """Class name; None = unlabelled."""
    split: str
    trim_start_s: float = 0.0
    trim_end_s: float | None = None
    """None = to the end."""
    where: str = ""
    """The `file:line` from which it was read."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One input that is left out, with the reason."""

    where: str
    """`file:line` of the annotation."""
    code: str
    detail: str
    path: str = ""
    split: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """Everything that the annotations of a data set name."""

    annotations: list[Annotation]
    problems: list[Problem]
    classes: tuple[str, ...]
    """In the order of their numbers."""
