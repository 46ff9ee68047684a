"""Opening a shard directory: only an intact seal is accepted."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.schema import INDEX_NAME, MANIFEST_NAME
from pipeline.data.errors import DataError
from pipeline.data.shards import Shards, open_shards
from pipeline.open_data import data_digest
from tests.pipeline.data.conftest import write_shards


def test_splits_are_numbered_in_storage_order(train_shards: Shards, shard_dir: Path) -> None:
    assert len(train_shards) == 26
    assert len(open_shards(shard_dir)) == 33
    rows = train_shards.samples(range(26))
    assert [row.label for row in rows] == [i % 3 for i in range(26)] == list(train_shards.labels)
    assert [row.frames for row in rows] == [8 + i % 30 for i in range(26)]
    places = [(row.shard, row.offset) for row in rows]
    assert places == sorted(places)


def test_samples_come_in_the_order_asked_for(train_shards: Shards) -> None:
    every = train_shards.samples(range(26))
    assert train_shards.samples([5, 0, 5]) == [every[5], every[0], every[5]]
    assert train_shards.samples([]) == []


def test_other_splits_of_a_directory_do_not_matter_to_a_run(tmp_path: Path) -> None:
    def digest(lengths: dict[str, list[int]], **options: Any) -> str:
        directory = write_shards(tmp_path / str(len(list(tmp_path.iterdir()))), lengths, **options)
        return data_digest(open_shards(directory, "train"), open_shards(directory, "val"))

    splits = {"train": [8, 9], "val": [8]}
    digests = {digest(splits), digest({"test": [8], **splits})}
    assert len(digests) == 1
    digests.add(digest({"train": [9, 8], "val": [8]}))
    digests.add(digest({"train": [8, 9], "val": [9]}))
    digests.add(digest(splits, per_shard=1))
    digests.add(digest(splits, classes=("class0", "class2", "class1")))
    assert len(digests) == 5


def test_read_returns_the_video(train_shards: Shards) -> None:
    assert train_shards.read(3)[4:8] == b"ftyp"


@given(st.integers(0, 100), st.integers(0, 5), st.integers(0, 9))
def test_order_is_a_permutation_for_any_window(train_shards, seed, epoch, window) -> None:
    order = train_shards.order(seed, epoch, window)
    assert sorted(order) == list(range(26))
    assert (order == train_shards.order(seed, epoch, window)).all()


def test_epochs_and_seeds_differ(train_shards: Shards) -> None:
    orders = [train_shards.order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_a_window_reads_few_shards_at_a_time(train_shards: Shards) -> None:
    order = train_shards.order(0, 0, window=2)
    shards = np.array([row.shard for row in train_shards.samples(order)])
    seen = list(dict.fromkeys(shards))
    for first in range(0, len(seen), 2):
        places = np.flatnonzero(np.isin(shards, seen[first : first + 2]))
        assert len(places) == places[-1] - places[0] + 1
    alone = [row.shard for row in train_shards.samples(train_shards.order(0, 0, window=1))]
    assert sum(a != b for a, b in pairwise(alone)) == 6


def edit_manifest(directory: Path, **changes: object) -> None:
    path = directory / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-512])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda d: (d / MANIFEST_NAME).unlink(), "not a finished shard directory"),
    "manifest is text": (lambda d: (d / MANIFEST_NAME).write_text("hello"), "not a manifest"),
    "field missing": (lambda d: (d / MANIFEST_NAME).write_text("{}"), r"dataset: Field required"),
    "changed manifest": (lambda d: edit_manifest(d, dataset="other"), "changed after it was seal"),
    "later schema": (lambda d: edit_manifest(d, schema_version=9), "schema version 9"),
    "no index": (lambda d: (d / INDEX_NAME).unlink(), "no index.parquet here"),
    "changed index": (lambda d: flip_byte(d / INDEX_NAME, 100), "sha256 differs"),
    "no shard": (lambda d: (d / "train-000001.tar").unlink(), "000001.tar: missing shard"),
    "truncated shard": (lambda d: truncate(d / "train-000001.tar"), "were sealed"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_in_one_line(make_shards, damage: str) -> None:
    directory = make_shards()
    break_it, message = DAMAGE[damage]
    break_it(directory)
    with pytest.raises(DataError, match=message) as caught:
        open_shards(directory)
    assert "\n" not in str(caught.value)
    assert str(directory) in str(caught.value)


def test_unknown_split_and_no_such_directory(shard_dir: Path) -> None:
    with pytest.raises(DataError, match="no split 'test' in this data set; it has train, val"):
        open_shards(shard_dir, "test")
    with pytest.raises(DataError, match=r"no manifest\.json here"):
        open_shards(shard_dir / "nowhere")


def test_one_flipped_byte_is_found_when_it_is_read(make_shards) -> None:
    directory = make_shards()
    sample = open_shards(directory).samples([2])[0]
    flip_byte(directory / sample.shard, sample.offset + 50)
    shards = open_shards(directory)
    with pytest.raises(DataError, match=f"sample {sample.key} is corrupt"):
        shards.read(2)
    assert shards.read(1)
