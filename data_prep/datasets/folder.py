"""`VIDEOS/<class>/<file>`, or `VIDEOS/<split>/<class>/<file>`. Images are clips of one frame."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from data_prep.annotation import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Annotation, Listing, Problem
from data_prep.datasets.inputs import Inputs

_SPLIT_NAMES = frozenset({"train", "val", "validation", "test"})


def read(inputs: Inputs) -> Listing:
    """Classes are the sorted directory names."""
    tops = _directories(inputs.videos)
    if tops and {top.name for top in tops} <= _SPLIT_NAMES:
        groups = [(split.name, _directories(split)) for split in tops]
    else:
        groups = [(inputs.split, tops)]
    annotations: list[Annotation] = []
    problems: list[Problem] = []
    for split, classes in groups:
        for directory in classes:
            for file in _files(directory):
                path = os.path.relpath(file, inputs.videos)
                if os.path.splitext(file)[1].lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
                    annotations.append(Annotation(path, directory.name, split, where=path))
                else:
                    detail = "neither a video's nor an image's suffix"
                    problems.append(Problem(path, "unknown_suffix", detail, path, split))
    names = sorted({directory.name for _, classes in groups for directory in classes})
    return Listing(annotations, problems, tuple(names))


def _directories(parent: Path) -> list[Path]:
    return sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(directory: Path) -> Iterator[str]:
    for parent, directories, names in os.walk(directory):
        directories.sort()
        for name in sorted(names):
            if not name.startswith("."):
                yield os.path.join(parent, name)
