"""The columns of the index that training needs, in memory or mapped from a file on the node.

A small index is read into memory. A large one is unpacked once per node and user into a file that
all ranks map, so that they share its pages.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.schema import INDEX_SCHEMA
from pipeline.rundir.durable import rename
from pipeline.rundir.lock import waiting_for

COLUMNS = ("key", "shard", "offset", "size", "sha256", "label", "frames", "keyframes")
_BATCH_ROWS = 1 << 17
# An index with more rows (about 100 MB in each rank) is shared by the ranks of a node.
_SHARED_ROWS = 100_000


@dataclass(frozen=True)
class Index:
    """Rows in storage order; the `shard` column holds positions in the manifest's list."""

    parts: tuple[pa.RecordBatch, ...]

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum([part.num_rows for part in self.parts])

    def column(self, name: str) -> NDArray[np.int32]:
        """Return a whole numeric column, shape (N,) int32."""
        parts = [part[name].to_numpy() for part in self.parts]
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    @cached_property
    def _keys(self) -> pa.ChunkedArray:
        return pa.chunked_array([part["key"] for part in self.parts], pa.string())

    def keys(self, indices: NDArray[np.int64] | Sequence[int]) -> list[str]:
        """Return the keys of the rows with the given numbers, in the given order."""
        keys: list[str] = self._keys.take(pa.array(indices, pa.int64())).to_pylist()
        return keys

    def rows(self, indices: NDArray[np.int64] | Sequence[int]) -> list[dict[str, Any]]:
        """Return the rows with the given numbers, in the given order."""
        wanted = np.asarray(indices, np.int64)
        owners = np.searchsorted(self._ends, wanted, side="right")
        starts = self._ends - [part.num_rows for part in self.parts]
        # Values are read one by one, which is faster than slicing the part and than `take`.
        return [
            {
                name: self.parts[owner][name][int(row - starts[owner])].as_py()
                for name in self.parts[owner].schema.names
            }
            for owner, row in zip(owners, wanted, strict=True)
        ]


def read_index(
    source: pa.NativeFile, split: str | None, shard_names: Sequence[str], digest: str
) -> Index:
    """Read the rows of `split` (None = all) from index.parquet, which the caller has verified.

    Args:
        shard_names: names of the shards, in the manifest's order.
        digest: digest of the data set, which names the shared file of a large index.
    """
    parquet = pq.ParquetFile(source)
    if parquet.metadata.num_rows <= _SHARED_ROWS:
        return Index(tuple(_parts(parquet, split, shard_names)))
    path = _node_directory() / f"{digest}-{split or 'all'}.arrow"
    with waiting_for(path.with_suffix(".lock")):
        if not path.exists():
            _unpack(_parts(parquet, split, shard_names), path)
    with pa.memory_map(str(path)) as mapped:
        reader = pa.ipc.open_file(mapped)
        return Index(tuple(reader.get_batch(i) for i in range(reader.num_record_batches)))


def _parts(
    parquet: pq.ParquetFile, split: str | None, shard_names: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    names = pa.array(shard_names, pa.string())
    for batch in parquet.iter_batches(_BATCH_ROWS, columns=[*COLUMNS, "split"]):
        if split is not None:
            batch = batch.filter(pc.equal(batch["split"], split))
        if batch.num_rows:
            columns = [batch[name].cast(INDEX_SCHEMA.field(name).type) for name in COLUMNS]
            columns[1] = pc.index_in(columns[1], names)
            yield pa.record_batch(columns, names=COLUMNS)


def _unpack(parts: Iterator[pa.RecordBatch], path: Path) -> None:
    first = next(parts, None)
    if first is None:
        raise ValueError("a large index without rows")
    temporary = path.with_suffix(".tmp")
    with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, first.schema) as writer:
        writer.write_batch(first)
        for part in parts:
            writer.write_batch(part)
    rename(temporary, path)


def _node_directory() -> Path:
    """Return a directory in the node's temporary storage that only this user can write."""
    path = Path(tempfile.gettempdir()) / f"videomambapro-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise PermissionError(f"{path} belongs to somebody else")
    return path
