"""Lists all files below the video directory, follows links and reports unreadable directories."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.annotation import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Problem
from data_prep.errors import verdict


@dataclass(frozen=True, slots=True)
class Tree:
    """Paths relative to the root, with directories and their files in order of name."""

    files: tuple[str, ...]
    problems: tuple[Problem, ...]
    """Directories that could not be read."""


def read_tree(root: Path) -> Tree:
    """List the files below `root`. Raises `MachineTrouble` when the machine fails to read one."""
    problems: list[Problem] = []
    files = tuple(_files(os.fspath(root), "", (), problems))
    return Tree(files, tuple(problems))


def suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def is_video(path: str) -> bool:
    return suffix(path) in VIDEO_SUFFIXES


def is_media(path: str) -> bool:
    return suffix(path) in VIDEO_SUFFIXES | IMAGE_SUFFIXES


def is_hidden(path: str) -> bool:
    """Whether a file is hidden, by its own name or by that of a directory above it."""
    return any(part.startswith(".") for part in path.split(os.sep))


def _files(
    root: str, inside: str, above: tuple[tuple[int, int], ...], problems: list[Problem]
) -> Iterator[str]:
    directory = os.path.join(root, inside)
    try:
        found = os.stat(directory)
        identity = (found.st_dev, found.st_ino)
        if identity in above:
            return  # the directory is a link to one that contains it
        with os.scandir(directory) as entries:
            listed = sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError as error:
        code, detail = verdict(error, directory)
        problems.append(Problem(inside or root, code, f"directory: {detail}", inside))
        return
    for name, _ in (item for item in listed if not item[1]):
        yield os.path.join(inside, name)
    for name, _ in (item for item in listed if item[1]):
        yield from _files(root, os.path.join(inside, name), (*above, identity), problems)
