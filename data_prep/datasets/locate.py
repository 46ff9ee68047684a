"""Finds the video of an identifier in a directory tree of unknown layout."""

from __future__ import annotations

import os

from data_prep.datasets.tree import Tree, is_hidden, is_video
from data_prep.datasets.validate import composed


class VideoFiles:
    """An index of the video files of a tree by name without suffix."""

    def __init__(self, tree: Tree) -> None:
        self._paths: dict[str, list[str]] = {}
        for path in tree.files:
            if is_video(path) and not is_hidden(path):
                stem = composed(os.path.splitext(os.path.basename(path))[0])
                self._paths.setdefault(stem, []).append(path)

    def find(self, *stems: str, directory: str | None = None) -> str | None:
        """The path, relative to the root, of the first name that exists.

        Of several files with one name, the one in a folder called `directory` wins (underscores may
        replace its spaces), or else the first in sorted order.
        """
        for stem in stems:
            paths = self._paths.get(composed(stem))
            if paths:
                return min(paths, key=lambda path: (not _is_in(path, directory), path))
        return None


def _is_in(path: str, directory: str | None) -> bool:
    parent = os.path.basename(os.path.dirname(path))
    return directory is not None and parent in (directory, directory.replace(" ", "_"))
