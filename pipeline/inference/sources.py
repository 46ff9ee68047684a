"""The videos that a user names: files, folders, patterns, and URLs of any kind fsspec reaches."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec

from data_prep.video.read import is_video_name
from pipeline.data.errors import DataError
from pipeline.data.storage import http_errors, is_url


def find_videos(named: str) -> list[str]:
    """Return the videos that one argument names, in order of their names.

    A file is itself, whatever its suffix; a folder stands for the videos anywhere below it, and a
    pattern for the files that match it. Raises DataError when nothing is found.
    """
    if is_url(named):
        found = _find_at_url(named)
    elif os.path.isdir(named):
        below = (str(path) for path in Path(named).rglob("*") if path.is_file())
        found = sorted(filter(is_video_name, below))
    elif glob.has_magic(named) and not os.path.exists(named):
        found = sorted(path for path in glob.glob(named, recursive=True) if os.path.isfile(path))
    else:
        return [named]  # what is wrong with a file is said when it is read
    if not found:
        raise DataError(f"{named}: no video is there")
    return found


@contextmanager
def as_local_file(video: str) -> Iterator[Path]:
    """Give a path under which the video can be read while the block runs.

    What a URL names is copied into the temporary directory (TMPDIR) first.
    Raises DataError when it cannot be read.
    """
    if not is_url(video):
        yield Path(video)
        return
    with tempfile.TemporaryDirectory(prefix="vmp-predict-") as folder:
        target = Path(folder) / ("video" + Path(video).suffix)
        with _url_errors(video):
            filesystem, path = fsspec.core.url_to_fs(video)
            filesystem.get_file(path, str(target))
        try:
            yield target
        except DataError as error:  # what the copy is called says nothing to the user
            raise DataError(str(error).replace(str(target), video)) from error


def _find_at_url(url: str) -> list[str]:
    with _url_errors(url):
        filesystem, path = fsspec.core.url_to_fs(url)
        if glob.has_magic(path) and not url.startswith("http"):  # there, a ? begins a query
            found = [name for name in filesystem.glob(path) if filesystem.isfile(name)]
        elif not url.startswith("http") and filesystem.isdir(path):
            found = [name for name in filesystem.find(path) if is_video_name(name)]
        else:
            return [url]
        return [filesystem.unstrip_protocol(name) for name in sorted(found)]


@contextmanager
def _url_errors(url: str) -> Iterator[None]:
    # fsspec raises ValueError for an unknown protocol and ImportError if a package is missing.
    expected: tuple[type[Exception], ...] = (OSError, ValueError, ImportError)
    expected += http_errors(url)
    try:
        yield
    except expected as error:
        raise DataError(f"{url}: cannot be read: {error or type(error).__name__}") from error
