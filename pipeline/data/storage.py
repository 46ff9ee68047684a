"""Reading byte ranges of shard files: local, remote, or remote through a local cache."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, cast

import fsspec

from data_prep.schema import ShardRecord
from pipeline.data.shard_cache import ShardCache

# Processes usually may open 1024 files, which a data set of that many shards would use up.
_MAX_OPEN = 64


class Storage(Protocol):
    """Files of a shard directory.

    Methods raise FileNotFoundError for a missing file and OSError for any other failure.
    """

    def read(self, name: str, offset: int, size: int) -> bytes: ...

    def forget(self, name: str) -> None:
        """Drop the handles and copies of a file that gave an error or wrong bytes."""


class LocalStorage:
    """A local directory, which keeps the files that it read last open. Each process has its own."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open = lru_cache(_MAX_OPEN)(_OpenFile.open)

    def read(self, name: str, offset: int, size: int) -> bytes:
        file = self._open(self._root / name)  # this reference keeps it open during the read
        return os.pread(file.descriptor, size, offset)

    def forget(self, name: str) -> None:
        self._open.cache_clear()

    def __reduce__(self) -> tuple[type[LocalStorage], tuple[Path]]:
        """Pickle without open files; a copy in another process opens its own."""
        return LocalStorage, (self._root,)


@dataclass(frozen=True, slots=True)
class _OpenFile:
    """An open file that closes with its last reference, so a read can finish after `forget`."""

    descriptor: int

    @classmethod
    def open(cls, path: Path) -> _OpenFile:
        return cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def __del__(self) -> None:
        os.close(self.descriptor)


class RemoteStorage:
    """A directory at any fsspec URL; every read is one range request."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        # Each process opens its own on first use, because connections do not survive a fork.
        self._filesystem: Any = None

    def read(self, name: str, offset: int, size: int) -> bytes:
        return cast(bytes, self._call("cat_file", name, start=offset, end=offset + size))

    def read_whole(self, name: str) -> bytes:
        return cast(bytes, self._call("cat_file", name))

    def download(self, name: str, target: Path) -> None:
        self._call("get_file", name, str(target))

    def forget(self, name: str) -> None:
        self._filesystem = None

    def _call(self, method: str, name: str, *args: object, **options: object) -> object:
        if self._filesystem is None:
            self._filesystem, _ = fsspec.core.url_to_fs(self._url)
        try:
            return getattr(self._filesystem, method)(f"{self._url}/{name}", *args, **options)
        except http_errors(self._url) as error:
            raise OSError(f"{self._url}/{name}: {error}") from error

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_filesystem": None}


class CachedStorage:
    """Remote shards, read from whole local copies."""

    def __init__(
        self,
        remote: RemoteStorage,
        cache: ShardCache,
        data_set: str,
        records: Mapping[str, ShardRecord],
    ) -> None:
        self._remote = remote
        self._cache = cache
        self._data_set = data_set
        self._records = records

    def read(self, name: str, offset: int, size: int) -> bytes:
        record = self._records[name]
        # The file is opened for every read, because another rank may evict the copy at any time.
        with self._cache.open(self._data_set, record, self._remote.download) as file:
            return os.pread(file.fileno(), size, offset)

    def forget(self, name: str) -> None:
        self._cache.drop(self._data_set, name)
        self._remote.forget(name)


def is_url(location: Path | str) -> bool:
    return "://" in str(location)


def http_errors(url: str) -> tuple[type[Exception], ...]:
    """Return the errors, besides OSError, that fsspec raises for a URL; only HTTP has any."""
    if not url.startswith("http"):
        return ()
    import aiohttp  # a slow import, which only HTTP needs

    return (aiohttp.ClientError,)
