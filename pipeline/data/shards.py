"""A sealed shard directory, opened for training: who is in it and where each sample lies."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from data_prep.schema import INDEX_NAME, INDEX_SCHEMA, MANIFEST_NAME, SCHEMA_VERSION, Manifest
from pipeline.data.errors import DataError
from pipeline.data.randomness import shuffled
from pipeline.data.reader import Sample, ShardReader
from pipeline.data.shard_cache import ShardCache
from pipeline.data.storage import CachedStorage, LocalStorage, RemoteStorage, Storage, is_url

_COLUMNS = list(Sample._fields)


@dataclass(frozen=True)
class Shards:
    """The samples of one split (or of all), numbered in storage order."""

    location: str
    manifest: Manifest
    table: pa.Table = field(repr=False)
    """Columns of INDEX_SCHEMA that training needs; the shard name is dictionary-encoded."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def digest(self) -> str:
        """Identity of the data set; a resumed run must see the same."""
        return self.manifest.digest

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifest.classes

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """Class of every sample, shape (N,)."""
        labels: NDArray[np.int32] = self.table["label"].to_numpy()
        return labels

    def samples(self, indices: NDArray[np.int64] | list[int]) -> list[Sample]:
        """The index rows with these numbers, in the given order."""
        columns = self.table.take(pa.array(indices, pa.int64())).to_pydict()
        columns["keyframes"] = [tuple(frames) for frames in columns["keyframes"]]
        return [Sample(*row) for row in zip(*(columns[name] for name in _COLUMNS), strict=True)]

    def read(self, index: int) -> bytes:
        """The video file of one sample, its size and sha256 checked."""
        return self._reader.read(self.samples([index])[0])

    @cached_property
    def _reader(self) -> ShardReader:
        return self.reader()

    def reader(
        self, *, verify: bool = True, attempts: int = 4, cache: ShardCache | None = None
    ) -> ShardReader:
        """A reader for these samples; `cache` keeps whole shards of remote data."""
        storage: Storage
        if not is_url(self.location):
            storage = LocalStorage(Path(self.location))
        elif cache is None:
            storage = RemoteStorage(self.location)
        else:
            records = {record.name: record for record in self.manifest.shards}
            storage = CachedStorage(RemoteStorage(self.location), cache, self.digest, records)
        return ShardReader(self.location, storage, verify, attempts)

    def order(self, seed: int, epoch: int, window: int = 0) -> NDArray[np.int64]:
        """The permutation of all samples that `epoch` shows, shape (N,).

        A pure function of its arguments and the manifest. With `window` > 0, shards are shuffled
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
        return np.concatenate(parts)

    @cached_property
    def _shard_starts(self) -> NDArray[np.int64]:
        """First row of every shard, in storage order."""
        codes = self.table["shard"].combine_chunks().indices.to_numpy()
        return np.flatnonzero(np.diff(codes, prepend=-1))


def open_shards(directory: Path | str, split: str | None = None) -> Shards:
    """Open a shard directory or fsspec URL, or one split of it, and prove that its seal is intact.

    Raises DataError when there is no manifest, when the manifest, the index or the size of a local
    shard is not what was sealed, or when the split does not exist.
    """
    location = str(directory).rstrip("/")
    manifest = _parse_manifest(f"{location}/{MANIFEST_NAME}", _fetch(location, MANIFEST_NAME))
    if split is not None and split not in manifest.splits:
        raise DataError(
            f"{location}: no split '{split}' in this data set; it has {', '.join(manifest.splits)}"
        )
    table = _parse_index(f"{location}/{INDEX_NAME}", _fetch(location, INDEX_NAME), manifest)
    if not is_url(location):
        _check_sizes(Path(location), manifest)
    if split is not None:
        table = table.filter(pc.equal(table["split"], split))
    return Shards(location, manifest, table.select(_COLUMNS).combine_chunks())


def _fetch(location: str, name: str) -> bytes:
    try:
        if is_url(location):
            return RemoteStorage(location).read_whole(name)
        return (Path(location) / name).read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{location}: no {name} here, so this is not a finished shard directory; "
            "make one with `vmp data shard`"
        ) from None
    # ValueError and ImportError: fsspec does not know the protocol or lacks its package.
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"{location}/{name}: cannot be read: {error}") from None


def _parse_manifest(path: str, content: bytes) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise DataError(f"{path}: not a manifest ({where or 'file'}: {problem['msg']})") from None
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


def _parse_index(path: str, content: bytes, manifest: Manifest) -> pa.Table:
    if hashlib.sha256(content).hexdigest() != manifest.index_sha256:
        raise DataError(
            f"{path}: not the index its manifest vouches for (sha256 differs); "
            "run `vmp data verify` on the directory"
        )
    table = pq.read_table(pa.BufferReader(content), columns=[*_COLUMNS, "split"])
    table = table.cast(pa.schema([INDEX_SCHEMA.field(name) for name in [*_COLUMNS, "split"]]))
    shard = table["shard"].combine_chunks().dictionary_encode()
    return table.set_column(table.schema.get_field_index("shard"), "shard", shard)


def _check_sizes(root: Path, manifest: Manifest) -> None:
    for record in manifest.shards:
        try:
            size = os.stat(root / record.name).st_size
        except FileNotFoundError:
            raise DataError(
                f"{root / record.name}: missing shard; run `vmp data verify` on the directory"
            ) from None
        if size != record.bytes:
            raise DataError(
                f"{root / record.name}: {size} bytes where {record.bytes} were sealed; "
                "run `vmp data verify` on the directory"
            )
