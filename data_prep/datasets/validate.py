"""Checks the clips of every format, once and before anything is decoded."""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from data_prep.annotation import SPLIT_NAME, Annotation, Listing, Problem
from data_prep.datasets.splits import known_split
from data_prep.errors import DataError

_LONGEST_S = 1e7  # four months
_INTEGER = re.compile(r"-?[0-9]+")
_MAX_CLASSES = 100_000


def seconds(text: str) -> float:
    """Parse a listed time. Raises `ValueError` for a value that is no place in a file."""
    value = float(text)
    if not math.isfinite(value) or not 0 <= value <= _LONGEST_S:
        raise ValueError(f"{text!r} is not a time from 0 to {_LONGEST_S:g} s")
    return value


def validated(listing: Listing, videos: Path) -> Listing:
    """Give files, labels and splits one spelling each; impossible clips become problems.

    Files below `videos` become relative to it, and labels take Unicode's composed form.
    """
    names = {name: composed(name) for name in listing.classes}
    annotations: list[Annotation] = []
    problems = list(listing.problems)
    for item in listing.annotations:
        try:
            annotations.append(_validated(item, videos))
        except ValueError as error:
            problems.append(Problem(item.where, "malformed", str(error), item.path))
    return Listing(annotations, problems, tuple(dict.fromkeys(names.values())))


def _validated(item: Annotation, videos: Path) -> Annotation:
    split = known_split(item.split) or item.split
    if not SPLIT_NAME.fullmatch(split):
        raise ValueError(f"split {split!r} may only hold letters, digits, - and _")
    for value in (item.trim_start_s, item.trim_end_s):
        if value is not None:
            seconds(f"{value!r}")
    if item.trim_end_s is not None and item.trim_end_s <= item.trim_start_s:
        raise ValueError(f"start {item.trim_start_s:g} is not before end {item.trim_end_s:g}")
    label = None if item.label is None else composed(item.label)
    return replace(item, path=plain_path(item.path, videos), label=label, split=split)


def composed(text: str) -> str:
    """Compose accents, é as one character, so that text which looks equal is equal."""
    return unicodedata.normalize("NFC", text.strip())


def plain_path(path: str, videos: Path) -> str:
    """Simplify `./a//b.mp4` to `a/b.mp4`, relative to `videos`; resolve `..` where that is safe."""
    root = os.path.abspath(videos)
    if os.path.isabs(path) and path.startswith(root + os.sep):
        path = path[len(root) :].lstrip(os.sep)
    parts = [part for part in path.split(os.sep) if part not in ("", ".")]
    plain = (os.sep if os.path.isabs(path) else "") + os.sep.join(parts)
    if ".." in parts:
        resolved = os.path.normpath(plain)
        same = os.path.realpath(os.path.join(root, resolved))
        if same == os.path.realpath(os.path.join(root, plain)):  # no link lies between
            return resolved
    return plain


def class_names(labels: Iterable[str], source: Path) -> tuple[str, ...]:
    """Number the classes: names in sorted order, integer labels as they are.

    An integer without a clip gets a class too, so that no other is renumbered. Raises `DataError`
    for integers that cannot number classes.
    """
    distinct = {composed(label) for label in labels}
    if not distinct or not all(_INTEGER.fullmatch(label) for label in distinct):
        return tuple(sorted(distinct))
    by_number: dict[int, str] = {}
    for label in sorted(distinct):
        other = by_number.setdefault(int(label), label)
        if other != label:
            raise DataError(f"{source}: labels {other!r} and {label!r} are one number; use one")
    low, high = min(by_number), max(by_number)
    if low < 0 or high >= max(_MAX_CLASSES, 2 * len(by_number)):
        raise DataError(
            f"{source}: labels are integers from {low} to {high}, which cannot number classes; "
            "count them from 0, or write names"
        )
    return tuple(by_number.get(number, str(number)) for number in range(high + 1))
