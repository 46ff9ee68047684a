"""Readers of a shard directory from elsewhere return a value or raise DataError."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.schema import INDEX_NAME, INDEX_SCHEMA, MANIFEST_NAME, Manifest
from pipeline.data.errors import DataError
from pipeline.data.shards import open_shards
from tests.fuzz import BOUNDED, SCALARS, damaged, damaged_json, value_or_own_error
from tests.pipeline.data.conftest import write_shards


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", {"train": [8, 9], "val": [8]})


def _use(shards: Path) -> None:
    """Opens the directory and reads everything: an error must come out here, not in a loader."""
    opened = open_shards(shards, "train")
    opened.samples(list(range(len(opened))))
    opened.order(0, 0, window=2)
    assert all(-1 <= label < len(opened.classes) for label in opened.labels)
    for number in range(len(opened)):
        opened.read(number)


def _seal(shards: Path, content: bytes) -> None:
    """Seal the directory as its writer would, if it can be sealed at all."""
    try:
        sealed = Manifest.model_validate_json(content).sealed().model_dump_json().encode()
    except ValueError:
        sealed = content
    (shards / MANIFEST_NAME).write_bytes(sealed)


def test_manifests(shards: Path) -> None:
    valid = json.loads((shards / MANIFEST_NAME).read_text())
    _use(shards)

    @BOUNDED
    @given(damaged_json(valid))
    def any_content(content: bytes) -> None:
        _seal(shards, content)
        value_or_own_error(lambda: _use(shards), DataError)

    any_content()


FEWER = settings(BOUNDED, max_examples=40)  # each writes, seals and reads a whole index


def test_indexes(shards: Path) -> None:
    manifest = json.loads((shards / MANIFEST_NAME).read_text())
    rows = pq.read_table(shards / INDEX_NAME).to_pylist()
    valid = (shards / INDEX_NAME).read_bytes()

    def any_bytes(content: bytes) -> None:
        (shards / INDEX_NAME).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        _seal(shards, json.dumps(manifest | {"index_sha256": digest}).encode())
        value_or_own_error(lambda: _use(shards), DataError)

    @FEWER
    @given(damaged(valid))
    def any_content(content: bytes) -> None:
        any_bytes(content)

    @FEWER
    @given(st.integers(0, len(rows) - 1), st.sampled_from(INDEX_SCHEMA.names), SCALARS)
    def any_value(number: int, column: str, value: Any) -> None:
        changed = [dict(row) for row in rows]
        changed[number][column] = [value] if column == "keyframes" else value
        try:
            table = pa.Table.from_pylist(changed, schema=INDEX_SCHEMA)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            return  # no index can hold it
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        any_bytes(buffer.getvalue())

    @FEWER
    @given(
        st.dictionaries(
            st.sampled_from(INDEX_SCHEMA.names), st.lists(SCALARS, min_size=3, max_size=3)
        )
    )
    def any_columns(columns: dict[str, list[Any]]) -> None:
        try:
            table = pa.table(columns)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            return
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        any_bytes(buffer.getvalue())

    any_content()
    any_value()
    any_columns()
