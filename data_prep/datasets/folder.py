"""Folders `<class>/<file>` or `<split>/<class>/<file>`. An image is a clip of one frame."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from data_prep.annotation import Annotation, Listing, Problem
from data_prep.datasets.inputs import Inputs
from data_prep.datasets.splits import known_split, looks_like_split
from data_prep.datasets.tree import is_hidden, is_media
from data_prep.datasets.validate import class_names
from data_prep.errors import DataError

_LIST = "or describe the data in a table: --format csv with path,label,split"


def read(inputs: Inputs) -> Listing:
    """Read the folders. Classes are the sorted directory names; integer names are class numbers.

    Raises `DataError` when it is unclear which directories are splits.
    """
    files = [path.split(os.sep) for path in inputs.tree.files if not is_hidden(path)]
    tops = sorted({parts[0] for parts in files if len(parts) > 1 and is_media(parts[-1])})
    by_split = _are_splits(tops, inputs.videos)
    annotations: list[Annotation] = []
    problems: list[Problem] = []
    for parts in files:
        path = os.sep.join(parts)
        names = parts[1:-1] if by_split else parts[:-1]
        if not names or parts[0] not in tops:
            continue  # outside of all classes; `presence` lists it if it is a video
        split = known_split(parts[0]) if by_split else inputs.split
        assert split is not None
        if is_media(path):
            _refuse_inner_split(names, path, inputs.videos)
            annotations.append(Annotation(path, names[0], split, where=path))
        else:
            detail = "neither a video's nor an image's suffix"
            problems.append(Problem(path, "unknown_suffix", detail, path, split))
    labels = {item.label for item in annotations if item.label is not None}
    return Listing(annotations, problems, class_names(labels, inputs.videos))


def _are_splits(tops: Iterable[str], videos: Path) -> bool:
    """Whether the top directories are splits rather than classes."""
    splits = [name for name in tops if looks_like_split(name)]
    others = [name for name in tops if name not in splits]
    if splits and others:
        raise DataError(
            f"--videos {videos}: {_named(splits)} like a split, {_named(others)} like a class "
            f"beside it; move one of them away, {_LIST}"
        )
    unclear = [name for name in splits if known_split(name) is None]
    if unclear:
        raise DataError(
            f"--videos {videos}: {_named(unclear)} like a split; rename it to train, val or test, "
            f"{_LIST}"
        )
    return bool(splits)


def _named(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
    return f"{shown} look{'s' if len(names) == 1 else ''}"


def _refuse_inner_split(names: list[str], path: str, videos: Path) -> None:
    inner = next((name for name in names if looks_like_split(name)), None)
    if inner is not None:
        raise DataError(
            f"--videos {videos}: {path!r} lies in {inner!r}, which looks like a split, but not as "
            "<split>/<class>/<file>; point --videos at the directory that holds the splits, "
            f"{_LIST}"
        )
