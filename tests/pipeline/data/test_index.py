"""An index too large for every rank is unpacked once and mapped by all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from pipeline.data import index
from pipeline.data.errors import DataError
from pipeline.data.shards import open_shards


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(index, "_SHARED_ROWS", 5)
    monkeypatch.setattr(index, "_BATCH_ROWS", 4)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_shared_index_is_the_index(shared: Path, shard_dir: Path, train_shards) -> None:
    for _ in range(2):
        shards = open_shards(shard_dir, "train")
        assert len(shards.index.parts) > 1
        order = train_shards.order(0, 0, window=3)
        assert (shards.order(0, 0, window=3) == order).all()
        assert shards.samples(order) == train_shards.samples(order)
        assert (shards.labels == train_shards.labels).all()
    assert len(list(shared.glob("*/*.arrow"))) == 1


def test_splits_and_data_sets_have_files_of_their_own(shared, shard_dir, make_shards) -> None:
    assert len(open_shards(shard_dir, "val")) == 7
    assert len(open_shards(shard_dir)) == 33
    assert len(open_shards(make_shards(), "train")) == 6
    assert len(list(shared.glob("*/*.arrow"))) == 3


def test_no_room_for_it_is_one_line(shared: Path, shard_dir: Path) -> None:
    (shared / f"videomambapro-{os.getuid()}").write_text("not a directory")
    with pytest.raises(DataError, match="cannot be unpacked on this node"):
        open_shards(shard_dir, "train")
