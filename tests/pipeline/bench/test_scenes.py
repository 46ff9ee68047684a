"""The scenes that `vmp bench loader` renders keep their size, their length and their bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow.parquet as pq

from data_prep.schema import INDEX_NAME
from pipeline.bench.scenes import shard_scenes
from pipeline.data.shards import open_shards


def test_scenes_are_sharded_as_they_were_encoded(tmp_path: Path) -> None:
    shards = shard_scenes(tmp_path, 3, frames=6)
    assert len(open_shards(shards, "train")) == 3
    rows = pq.read_table(shards / INDEX_NAME).to_pylist()
    assert {(row["width"], row["height"], row["frames"], row["fps"]) for row in rows} == {
        (340, 256, 6, 25.0)
    }
    rendered = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in (tmp_path / "videos").iterdir()
    }
    assert {row["source"]: row["sha256"] for row in rows} == rendered
