"""Stores shards in a directory, or in any place that fsspec reaches."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any, Protocol, cast

import fsspec

from data_prep.durable import move, publish
from data_prep.errors import DataError, refused

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-z]+\.tmp")
"""A file's name, and then the generation of a claim or the random part of `publish`."""


class Store(Protocol):
    """A flat directory of files that appear whole or not at all."""

    def scratch(self, name: str) -> Path:
        """The local path at which to write a file that `put` then publishes as `name`."""

    def put(self, scratch: Path, name: str) -> None:
        """Publish a flushed local file and remove it."""

    def write(self, name: str, content: bytes) -> None: ...

    def read(self, name: str) -> bytes:
        """The content of a file. Raises `FileNotFoundError`."""

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading. Raises `FileNotFoundError`."""

    def size(self, name: str) -> int | None:
        """The size in bytes, or None when the file is absent."""

    def names(self) -> list[str]: ...

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""

    def sweep(self, names: Collection[str]) -> None:
        """Remove what killed processes left of files that would have had one of `names`."""


class DirectoryStore:
    def __init__(self, root: Path) -> None:
        self.root = root

    def scratch(self, name: str) -> Path:
        return self.root / f".{name}.tmp"

    def put(self, scratch: Path, name: str) -> None:
        move(scratch, self.root / name)

    def write(self, name: str, content: bytes) -> None:
        publish(self.root / name, content)

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def open(self, name: str) -> IO[bytes]:
        return (self.root / name).open("rb")

    def size(self, name: str) -> int | None:
        path = self.root / name
        return path.stat().st_size if path.is_file() else None

    def names(self) -> list[str]:
        return sorted(entry.name for entry in os.scandir(self.root) if entry.is_file())

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def sweep(self, names: Collection[str]) -> None:
        for name in self.names():
            temporary = _TEMPORARY.fullmatch(name)
            if temporary and temporary[1] in names:
                self.remove(name)


class UrlStore:
    """A store behind a URL. Where objects do not appear whole, no record names a partial one."""

    def __init__(self, url: str, scratch: Path) -> None:
        filesystem, root = fsspec.core.url_to_fs(url)
        self._filesystem: Any = filesystem
        self._root = root.rstrip("/")
        self._scratch = scratch
        self._filesystem.makedirs(self._root, exist_ok=True)

    def scratch(self, name: str) -> Path:
        return self._scratch / f"{name}.tmp"

    def put(self, scratch: Path, name: str) -> None:
        self._filesystem.put_file(str(scratch), self._path(name))
        scratch.unlink()

    def write(self, name: str, content: bytes) -> None:
        self._filesystem.pipe_file(self._path(name), content)

    def read(self, name: str) -> bytes:
        return cast(bytes, self._filesystem.cat_file(self._path(name)))

    def open(self, name: str) -> IO[bytes]:
        return cast(IO[bytes], self._filesystem.open(self._path(name), "rb"))

    def size(self, name: str) -> int | None:
        try:
            return int(self._filesystem.size(self._path(name)))
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        listed = self._filesystem.ls(self._root, detail=False, refresh=True)
        return sorted(path.rsplit("/", 1)[-1] for path in listed)

    def remove(self, name: str) -> None:
        if self.size(name) is not None:
            self._filesystem.rm_file(self._path(name))

    def sweep(self, names: Collection[str]) -> None:
        """Do nothing: the object store drops an upload that its client did not end."""

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def is_url(out: str) -> bool:
    return "://" in out


def open_store(out: str, scratch: Path) -> Store:
    """Open a store; shards for a URL are built in `scratch`. Raises `DataError` if out of reach."""
    try:
        if not is_url(out):
            Path(out).mkdir(parents=True, exist_ok=True)
            return DirectoryStore(Path(out))
        return UrlStore(out, scratch)
    except OSError as error:
        raise refused(error, f"--out {out}: cannot be used") from None
    except (ValueError, ImportError) as error:
        raise DataError(f"--out {out}: cannot be used ({error})") from None
