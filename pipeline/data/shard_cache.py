"""A local cache of whole shards of remote data sets, which evicts the least recently used.

Any number of processes and runs on a machine may share the cache. A shard is fetched once, under a
lock of its own, and gets its name only when it is complete and verified. It may be evicted while a
process reads it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data_prep.schema import ShardRecord
from pipeline.data.errors import DataError
from pipeline.rundir.durable import rename, sync_file
from pipeline.rundir.lock import waiting_for

Download = Callable[[str, Path], None]
"""(shard name, local file to write)."""


@dataclass(frozen=True)
class ShardCache:
    """Cache of files `directory/<data set>/<shard>`, with at most `limit_bytes` in all."""

    directory: Path
    limit_bytes: int

    def open(self, data_set: str, record: ShardRecord, download: Download) -> BinaryIO:
        """Open a shard, fetch it first if it is missing, and mark it as used.

        Raises OSError when fetching fails or brings other bytes than were sealed, and DataError
        when the shard is larger than the whole cache.
        """
        path = self._path(data_set, record.name)
        while True:
            try:
                os.utime(path)
                return path.open("rb")
            except FileNotFoundError:
                self._fetch(path, record, download)

    def drop(self, data_set: str, name: str) -> None:
        self._path(data_set, name).unlink(missing_ok=True)

    def _path(self, data_set: str, name: str) -> Path:
        return self.directory / data_set / name

    def _fetch(self, path: Path, record: ShardRecord, download: Download) -> None:
        if record.bytes > self.limit_bytes:
            raise DataError(
                f"shard {record.name} has {record.bytes} bytes, more than the whole cache "
                f"({self.limit_bytes}): raise data.cache_gib"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with waiting_for(path.with_suffix(".lock")):
            if path.exists():
                return
            # This process holds the lock, so an existing part file was left by a killed process.
            part = path.with_suffix(".part")
            part.unlink(missing_ok=True)
            self._make_room(record.bytes)
            try:
                download(record.name, part)
                _check(part, record)
                sync_file(part)
                rename(part, path)
            finally:
                part.unlink(missing_ok=True)

    def _make_room(self, needed: int) -> None:
        with waiting_for(self.directory / "evict.lock"):
            kept = sorted(_sizes_by_age(self.directory))
            total = sum(size for _, size, _ in kept)
            for _, size, path in kept:
                if total + needed <= self.limit_bytes:
                    return
                path.unlink(missing_ok=True)
                total -= size


def _sizes_by_age(directory: Path) -> Iterator[tuple[float, int, Path]]:
    for path in directory.glob("*/*.tar"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        yield status.st_mtime, status.st_size, path


def _check(part: Path, record: ShardRecord) -> None:
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != record.sha256:
        raise OSError(
            f"{record.name}: fetched {part.stat().st_size} bytes that are not the shard the "
            f"manifest names ({record.bytes} bytes)"
        )
