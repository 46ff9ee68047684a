"""A sealed shard directory, opened for training: who is in it and where each sample lies."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from data_prep.schema import INDEX_NAME, INDEX_SCHEMA, MANIFEST_NAME, SCHEMA_VERSION, Manifest
from pipeline.data.errors import DataError
from pipeline.data.randomness import shuffled
from pipeline.data.reader import ShardReader

_COLUMNS = ["key", "shard", "offset", "size", "sha256", "label", "frames", "keyframes"]


class Sample(NamedTuple):
    """One row of the index: all a loader process needs to know about a sample."""

    key: str
    shard: str
    offset: int
    size: int
    sha256: str
    label: int
    frames: int
    keyframes: tuple[int, ...]


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
        return self.reader.read(self.samples([index])[0])

    @cached_property
    def reader(self) -> ShardReader:
        return ShardReader(self.location)

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
    """Open a shard directory, or one split of it, after proving that its seal is intact.

    Raises DataError when there is no manifest, when the manifest, the index or the size of a shard
    is not what was sealed, or when the split does not exist.
    """
    root = Path(directory)
    manifest = _read_manifest(root / MANIFEST_NAME)
    if split is not None and split not in manifest.splits:
        raise DataError(
            f"{root}: no split '{split}' in this data set; it has {', '.join(manifest.splits)}"
        )
    table = _read_index(root / INDEX_NAME, manifest)
    _check_shards(root, manifest)
    if split is not None:
        table = table.filter(pc.equal(table["split"], split))
    table = table.select(_COLUMNS).combine_chunks()
    return Shards(str(root), manifest, table)


def _read_manifest(path: Path) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file, so this is not a finished shard directory; "
            "make one with `vmp data shard`"
        ) from None
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


def _read_index(path: Path, manifest: Manifest) -> pa.Table:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: missing; run `vmp data verify` on the directory") from None
    if hashlib.sha256(content).hexdigest() != manifest.index_sha256:
        raise DataError(
            f"{path}: not the index its manifest vouches for (sha256 differs); "
            "run `vmp data verify` on the directory"
        )
    table = pq.read_table(pa.BufferReader(content), columns=[*_COLUMNS, "split"])
    table = table.cast(pa.schema([INDEX_SCHEMA.field(name) for name in [*_COLUMNS, "split"]]))
    shard = table["shard"].combine_chunks().dictionary_encode()
    return table.set_column(table.schema.get_field_index("shard"), "shard", shard)


def _check_shards(root: Path, manifest: Manifest) -> None:
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
