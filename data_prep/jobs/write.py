"""Writes one shard: a tar that WebDataset readers open, and its record.

The standard library's `tarfile` writes it, because `webdataset.TarWriter` would import torch into
every sharding process. Times and owners are fixed, so that equal clips give equal bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import time
from pathlib import Path

from data_prep.jobs.record import RejectedRow, SampleRow, ShardResult, Timings, record_name
from data_prep.plan import PlannedClip, PlannedShard
from data_prep.storage import Store
from data_prep.video.clip import PreparedClip, RejectedClip

_BLOCK = 512


class ShardWriter:
    """Collects the clips of one shard under a temporary name until `publish` names it."""

    def __init__(
        self, shard: PlannedShard, classes: tuple[str, ...], plan: str, scratch: Path
    ) -> None:
        self._shard, self._classes, self._plan, self._scratch = shard, classes, plan, scratch
        self._rows: list[SampleRow] = []
        self._rejected: list[RejectedRow] = []
        self._started = time.monotonic()
        self._file = scratch.open("wb")
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)

    @property
    def is_complete(self) -> bool:
        return len(self._rows) + len(self._rejected) == len(self._shard.clips)

    def add(self, clip: PlannedClip, prepared: PreparedClip | RejectedClip) -> None:
        source = printable(clip.path)
        if isinstance(prepared, RejectedClip):
            self._rejected.append(
                RejectedRow(
                    key=clip.key,
                    source=source,
                    where=printable(clip.where),
                    code=prepared.code,
                    detail=prepared.detail,
                )
            )
            return
        row = SampleRow.of(
            prepared,
            key=clip.key,
            offset=self._tar.offset + _BLOCK,
            size=len(prepared.video),
            label=clip.label,
            source=source,
            source_bytes=prepared.original.bytes,
        )
        self._rows.append(row)
        self._add_member(f"{clip.key}.mp4", prepared.video)
        self._add_member(f"{clip.key}.json", self._description(clip, row))

    def _description(self, clip: PlannedClip, row: SampleRow) -> bytes:
        content = row.model_dump(exclude={"offset", "size"})
        content |= {
            "split": self._shard.split,
            "class": self._classes[row.label] if row.label >= 0 else None,
            "trim": [clip.trim_start_s, clip.trim_end_s],
        }
        return json.dumps(content, sort_keys=True).encode()

    def _add_member(self, name: str, content: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(content), 0o444
        self._tar.addfile(info, io.BytesIO(content))

    def publish(self, store: Store) -> ShardResult:
        """Flush and publish the tar, then its record."""
        assert self.is_complete, f"{self._shard.name}: clips are missing"
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        with self._scratch.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = self._scratch.stat().st_size
        if self._rows:
            store.put(self._scratch, self._shard.name)
        else:
            self._scratch.unlink()
        result = ShardResult(
            name=self._shard.name,
            split=self._shard.split,
            plan=self._plan,
            samples=len(self._rows),
            bytes=size if self._rows else 0,
            sha256=digest if self._rows else "",
            rows=tuple(self._rows),
            rejected=tuple(sorted(self._rejected, key=lambda row: row.key)),
            timings=Timings.since(self._started),
        )
        store.write(record_name(self._shard.name), result.model_dump_json().encode())
        return result

    def discard(self) -> None:
        self._file.close()
        self._scratch.unlink(missing_ok=True)


def printable(path: str) -> str:
    """A file name as text; bytes that are not UTF-8 become `\\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
