"""Finds the video of an identifier in a directory tree of unknown layout."""

from __future__ import annotations

import os
from pathlib import Path

from data_prep.annotation import VIDEO_SUFFIXES


class VideoFiles:
    """All video files below `root`, by name without suffix."""

    def __init__(self, root: Path) -> None:
        self._paths: dict[str, list[str]] = {}
        for parent, directories, names in os.walk(root, followlinks=True):
            directories.sort()
            for name in sorted(names):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in VIDEO_SUFFIXES:
                    path = os.path.relpath(os.path.join(parent, name), root)
                    self._paths.setdefault(stem, []).append(path)

    def find(self, *stems: str, directory: str | None = None) -> str | None:
        """Path relative to the root of the first name that exists.

        Of several files of one name the one in a folder called `directory` is taken (spaces may
        be underscores there), else the first in sorted order.
        """
        for stem in stems:
            paths = self._paths.get(stem)
            if paths:
                return min(paths, key=lambda path: (not _is_in(path, directory), path))
        return None


def _is_in(path: str, directory: str | None) -> bool:
    parent = os.path.basename(os.path.dirname(path))
    return directory is not None and parent in (directory, directory.replace(" ", "_"))
