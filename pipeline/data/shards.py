"""A sealed shard directory opened for training: its samples and where their bytes are."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError

from data_prep.schema import (
    INDEX_NAME,
    MANIFEST_NAME,
    SCHEMA_VERSION,
    Manifest,
    ShardRecord,
    how_to_seal,
)
from model.invalid import first_problem
from pipeline.data.errors import DataError
from pipeline.data.index import Index, read_index
from pipeline.data.randomness import shuffled
from pipeline.data.reader import Sample, ShardReader
from pipeline.data.shard_cache import ShardCache
from pipeline.data.storage import CachedStorage, LocalStorage, RemoteStorage, Storage, is_url


@dataclass(frozen=True)
class Shards:
    """The samples of one split (or of all), numbered in storage order."""

    location: str
    manifest: Manifest
    index: Index = field(repr=False)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def digest(self) -> str:
        """Digest of the whole directory, other splits included, which names its caches."""
        return self.manifest.digest

    @cached_property
    def content_digest(self) -> str:
        """Digest of these samples, their order and their classes, but not of other splits."""
        content = [self.classes, [record.model_dump(mode="json") for record in self.records]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @cached_property
    def records(self) -> list[ShardRecord]:
        """The shards that hold these samples, in storage order."""
        return [self.manifest.shards[i] for i in np.unique(self.index.column("shard"))]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifest.classes

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """Class number of every sample, shape (N,) int32."""
        return self.index.column("label")

    def samples(self, indices: NDArray[np.int64] | list[int]) -> list[Sample]:
        """Return the index rows with these numbers, in the given order."""
        shards = self.manifest.shards
        return [
            Sample(
                key=row["key"],
                shard=shards[row["shard"]].name,
                offset=row["offset"],
                size=row["size"],
                sha256=row["sha256"],
                label=row["label"],
                frames=row["frames"],
                keyframes=tuple(row["keyframes"]),
            )
            for row in self.index.rows(indices)
        ]

    def keys(self, indices: NDArray[np.int64] | list[int]) -> list[str]:
        """Return the keys of the samples with these numbers, in the given order."""
        return self.index.keys(indices)

    def read(self, index: int) -> bytes:
        """Return the video file of a sample, after a check of its size and sha256."""
        return self._reader.read(self.samples([index])[0])

    @cached_property
    def _reader(self) -> ShardReader:
        return self.reader()

    def reader(
        self, *, verify: bool = True, attempts: int = 4, cache: ShardCache | None = None
    ) -> ShardReader:
        """Build a reader for these samples; `cache` keeps whole shards of remote data."""
        storage: Storage
        if not is_url(self.location):
            storage = LocalStorage(Path(self.location))
        elif cache is None:
            storage = RemoteStorage(self.location)
        else:
            records = {record.name: record for record in self.manifest.shards}
            storage = CachedStorage(RemoteStorage(self.location), cache, self.digest, records)
        return ShardReader(self.location, storage, verify, attempts, self.manifest.adopted)

    def order(self, seed: int, epoch: int, window: int = 0) -> NDArray[np.int64]:
        """Return the permutation of all samples for `epoch`, shape (N,) int64.

        It depends only on the arguments and the manifest. With `window` > 0, shards are shuffled,
        and samples only within `window` shards at a time, so that storage is read in large pieces.
        """
        if not window:
            return shuffled(len(self), "samples", seed, epoch)
        starts = self._shard_starts
        lengths = np.diff(starts, append=len(self))
        shards = shuffled(len(starts), "shards", seed, epoch)
        parts = []
        for first in range(0, len(shards), window):
            rows = np.concatenate(
                [starts[s] + np.arange(lengths[s]) for s in shards[first : first + window]]
            )
            parts.append(rows[shuffled(len(rows), "window", seed, epoch, first)])
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def require_samples(self, *, labelled: bool) -> None:
        """Raise DataError if there is no sample, or if one has no label and must be `labelled`."""
        if not len(self):
            raise DataError(f"{self.location}: no samples in this split")
        if labelled and (self.labels < 0).any():
            raise DataError(
                f"{self.location}: {int((self.labels < 0).sum())} samples have no label; "
                "training and evaluation need one for each (only task.kind=masked does without)"
            )

    @cached_property
    def _shard_starts(self) -> NDArray[np.int64]:
        """First row of every shard, in storage order, int64."""
        return np.flatnonzero(np.diff(self.index.column("shard"), prepend=-1))


def open_shards(directory: Path | str, split: str | None = None) -> Shards:
    """Open a shard directory or fsspec URL, or one split of it, and verify its seal.

    Raises DataError when there is no manifest, when the manifest, the index or the size of a local
    shard differs from what was sealed, or when the split does not exist.
    """
    location = str(directory).rstrip("/")
    manifest = _parse_manifest(f"{location}/{MANIFEST_NAME}", _fetch(location, MANIFEST_NAME))
    if split is not None and split not in manifest.splits:
        raise DataError(
            f"{location}: no split '{split}' in this data set; it has {', '.join(manifest.splits)}"
        )
    index = _open_index(location, manifest, split)
    if not is_url(location):
        _check_sizes(Path(location), manifest)
    return Shards(location, manifest, index)


def _fetch(location: str, name: str) -> bytes:
    try:
        if is_url(location):
            return RemoteStorage(location).read_whole(name)
        return (Path(location) / name).read_bytes()
    except FileNotFoundError:
        advice = how_to_seal(_names(location) if name == MANIFEST_NAME else ())
        raise DataError(
            f"{location}: no {name} here, so this is not a finished shard directory; {advice}"
        ) from None
    # fsspec raises ValueError for an unknown protocol and ImportError if a package is missing.
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"{location}/{name}: cannot be read: {error}") from None


def _names(location: str) -> list[str]:
    """List a local directory for an error message; a URL is not listed, which could be slow."""
    try:
        return [] if is_url(location) else os.listdir(location)
    except OSError:
        return []


def _parse_manifest(path: str, content: bytes) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise DataError(f"{path}: not a manifest ({first_problem(error)})") from None
    if manifest.schema_version != SCHEMA_VERSION:
        raise DataError(
            f"{path}: schema version {manifest.schema_version}, this program reads {SCHEMA_VERSION}"
        )
    if manifest.digest != manifest.compute_digest():
        raise DataError(
            f"{path}: changed after it was sealed (digest does not match its content); "
            "restore it or shard the data again"
        )
    return manifest


def _open_index(location: str, manifest: Manifest, split: str | None) -> Index:
    content = _fetch(location, INDEX_NAME)
    path = f"{location}/{INDEX_NAME}"
    if hashlib.sha256(content).hexdigest() != manifest.index_sha256:
        raise DataError(
            f"{path}: not the index that its manifest names (sha256 differs); "
            "run `vmp data verify` on the directory"
        )
    names = [record.name for record in manifest.shards]
    try:
        index = read_index(pa.BufferReader(content), split, names, manifest.digest)
    except OSError as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be unpacked on this node: {reason}") from None
    # Text that is not UTF-8 raises ValueError, and a missing column raises KeyError.
    except (pa.ArrowException, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{path}: not an index ({reason}); run `vmp data verify`") from None
    wanted = sum(manifest.splits.values()) if split is None else manifest.splits[split]
    if len(index) != wanted:
        raise DataError(
            f"{path}: has {len(index)} samples of {split or 'all splits'}, the manifest {wanted}; "
            "run `vmp data verify` on the directory"
        )
    if fault := _fault(index, manifest):
        raise DataError(f"{path}: {fault}; run `vmp data verify` on the directory")
    return index


def _fault(index: Index, manifest: Manifest) -> str | None:
    """Return a value that no valid index can hold, whoever sealed it; None if there is none."""
    most = 2**62  # larger than any shard, and below 2**63, where int64 overflows
    shard_bytes = np.array([min(record.bytes, most) for record in manifest.shards], np.int64)
    for part in index.parts:
        if any(column.null_count for column in part.columns):
            return "a value is missing, or a shard that the manifest does not name"
        offset, size = part["offset"].to_numpy(), part["size"].to_numpy()
        ends = shard_bytes[part["shard"].to_numpy()]
        if (
            (offset < 0).any()
            or (size < 0).any()
            or (size > ends).any()
            or (offset > ends - size).any()
        ):
            return "a sample does not lie inside its shard"
        label, frames = part["label"].to_numpy(), part["frames"].to_numpy()
        if (label < -1).any() or (label >= len(manifest.classes)).any():
            return f"a label is none of the {len(manifest.classes)} classes"
        if (frames < 1).any():
            return "a sample has no frames"
        if part["keyframes"].flatten().null_count:
            return "a keyframe is missing"
    return None


def _check_sizes(root: Path, manifest: Manifest) -> None:
    for record in manifest.shards:
        try:
            size = os.stat(root / record.name).st_size
        except (OSError, ValueError):  # an impossible file name raises ValueError
            raise DataError(
                f"{root / record.name}: missing shard; run `vmp data verify` on the directory"
            ) from None
        if size != record.bytes:
            raise DataError(
                f"{root / record.name}: {size} bytes where {record.bytes} were sealed; "
                "run `vmp data verify` on the directory"
            )
