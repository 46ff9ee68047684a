"""Compares a listing with the disk: absent files, files in two splits, unlisted videos."""

from __future__ import annotations

import os
import stat
from dataclasses import replace

from data_prep.annotation import Annotation, Listing, Problem
from data_prep.datasets.inputs import Inputs
from data_prep.datasets.tree import Tree, is_hidden, is_video
from data_prep.datasets.validate import composed
from data_prep.errors import verdict

_Identity = tuple[int, int]
"""Device and inode, which identify a file under all its names."""


def present(listing: Listing, inputs: Inputs) -> Listing:
    """Keep annotations whose files exist; report absent, repeated and unlisted files as problems.

    Raises `MachineTrouble` when the disk does not tell whether a file exists.
    """
    spellings = {composed(path): path for path in inputs.tree.files}
    annotations: list[Annotation] = []
    problems = [*listing.problems, *inputs.tree.problems]
    first_with: dict[tuple[_Identity, float, float | None], Annotation] = {}
    for listed in listing.annotations:
        item, found = _find(listed, inputs, spellings)
        if isinstance(found, Problem):
            problems.append(found)
            continue
        clip = (found, item.trim_start_s, item.trim_end_s)
        first = first_with.setdefault(clip, item)
        if first.split != item.split:
            detail = f"the same file as {first.path!r} in {first.split}, at {first.where}"
            problems.append(Problem(item.where, "in_other_split", detail, item.path, item.split))
            continue
        annotations.append(item)
    problems += _outside(inputs.tree, annotations, problems)
    return replace(listing, annotations=annotations, problems=problems)


def _find(
    item: Annotation, inputs: Inputs, spellings: dict[str, str]
) -> tuple[Annotation, _Identity | Problem]:
    """The annotation with its path spelled as on the disk, and the file or the problem."""
    path = os.path.join(inputs.videos, item.path)
    try:
        try:
            found = os.stat(path)
        except FileNotFoundError:
            # The list may compose accents that the disk does not, or the other way round.
            item = replace(item, path=spellings.get(composed(item.path), item.path))
            path = os.path.join(inputs.videos, item.path)
            found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        code, detail = "missing", f"no file {item.path} in {inputs.videos}"
        if isinstance(error, OSError):
            code, reason = verdict(error, path)
            detail = detail if code == "missing" else f"{item.path}: {reason}"
        return item, Problem(item.where, code, detail, item.path, item.split)
    if not stat.S_ISREG(found.st_mode):
        detail = f"{item.path} is not a regular file"
        return item, Problem(item.where, "missing", detail, item.path, item.split)
    return item, (found.st_dev, found.st_ino)


def _outside(tree: Tree, annotations: list[Annotation], problems: list[Problem]) -> list[Problem]:
    named = {item.path for item in annotations} | {item.path for item in problems}
    outside = []
    for path in tree.files:
        if is_video(path) and path not in named:
            reason = "hidden, and not listed" if is_hidden(path) else "no annotation names it"
            outside.append(Problem(path, "outside", reason, path))
    return outside
