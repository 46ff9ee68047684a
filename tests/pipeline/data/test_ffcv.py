"""The FFCV cache keeps the order and the pixels, and no failure in it waits for ever."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.config import CropConfig, DataConfig, RandAugmentConfig
from pipeline.data.errors import DataError
from pipeline.data.ffcv.cache import CacheOptions, StoredClips, build_cache, import_ffcv, open_cache
from pipeline.data.loader import TrainLoader, build_train_loader
from pipeline.data.shards import Shards, open_shards

try:
    ffcv_clips = import_ffcv()
except DataError as error:
    pytest.skip(str(error), allow_module_level=True)

RAW = CacheOptions(frames=4, size=32, quality=0)
JPEG = CacheOptions(frames=6, size=32, quality=90)
STILL = DataConfig(train="unused", crop=CropConfig(kind="none"), hflip=0.0, workers=2)


@pytest.fixture(scope="module")
def raw_cache(shard_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("raw")
    build_cache(shard_dir, "train", out, RAW, workers=2)
    return out


@pytest.fixture(scope="module")
def jpeg_cache(shard_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("jpeg")
    build_cache(shard_dir, "train", out, JPEG, workers=2)
    return out


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    def copy(cache: Path) -> Path:
        for name in ("train.beton", "train.cache.json"):
            (tmp_path / name).write_bytes((cache / name).read_bytes())
        return tmp_path

    return copy


def loader(shards: Shards, cache: Path | None, config: DataConfig = STILL, **options: int):
    arguments = {"img_size": 32, "num_frames": 4, "seed": 3, "global_batch": 8, "micro_batch": 4}
    changes = {"reader": "ffcv", "ffcv_cache": cache} if cache else {"workers": 0}
    config = config.model_copy(update=changes)
    return build_train_loader(shards, config, **(arguments | options))


def sequence(batches: TrainLoader, steps: int) -> list[tuple[int, int, str, int]]:
    with batches:
        return [
            row
            for batch in islice(batches, steps * batches.batches.accumulation)
            for row in zip(
                batch.position.tolist(),
                batch.epoch.tolist(),
                batch.keys,
                batch.label.tolist(),
                strict=True,
            )
        ]


@pytest.mark.parametrize(("world", "start"), [(1, 0), (2, 0), (1, 16), (2, 40)])
def test_the_order_is_that_of_the_decoding_loader(train_shards, raw_cache, world, start) -> None:
    """Seven steps cross two ends of an epoch of three."""
    for rank in range(world):
        options = {"rank": rank, "world": world, "start": start}
        cached = sequence(loader(train_shards, raw_cache, **options), 7)
        assert cached == sequence(loader(train_shards, None, **options), 7)


def test_raw_clips_come_back_to_the_bit(train_shards: Shards, raw_cache: Path) -> None:
    stored = StoredClips(train_shards, RAW)
    rows = {sample.key: i for i, sample in enumerate(train_shards.samples(range(26)))}
    with loader(train_shards, raw_cache) as batches:
        for batch in islice(batches, 12):
            for key, clip in zip(batch.keys, batch.clips, strict=True):
                expected = torch.from_numpy(stored[rows[key]][0]).permute(3, 0, 1, 2)
                assert torch.equal(clip[0], expected)
            assert batch.weight.tolist() == [1.0] * 4


def test_jpeg_frames_come_back_close(train_shards: Shards, jpeg_cache: Path) -> None:
    stored = StoredClips(train_shards, JPEG)
    reader = ffcv_clips.BetonReader(jpeg_cache / "train.beton", 5, threads=2, ahead=1)
    order = np.random.default_rng(0).permutation(26)
    got = np.concatenate([batch.copy() for batch in reader.batches(order)])
    expected = np.stack([stored[row][0] for row in order])
    assert got.shape == (26, 6, 32, 32, 3)
    error = np.abs(got.astype(int) - expected).mean(axis=(1, 2, 3, 4))
    wrong_clip = np.abs(got.astype(int) - np.roll(expected, 1, axis=0)).mean(axis=(1, 2, 3, 4))
    assert (error * 3 < wrong_clip).all()


def test_augmentation_is_that_of_decoded_clips(train_shards: Shards, raw_cache: Path) -> None:
    """With the same frames stored, the pixels of every view are those the decoder would give."""
    config = DataConfig(
        train="unused",
        workers=3,
        views=2,
        crop=CropConfig(scale=(0.3, 1.0)),
        randaugment=RandAugmentConfig(num_ops=2),
    )
    with loader(train_shards, raw_cache, config) as batches:
        first = [next(batches) for _ in range(4)]
        maker = batches.source._maker
    stored = StoredClips(train_shards, RAW)
    rows = {sample.key: i for i, sample in enumerate(train_shards.samples(range(26)))}
    slots = [slot for micro in islice(batches.batches, 4) for slot in micro]
    keys = [key for batch in first for key in batch.keys]
    clips = [clip for batch in first for clip in batch.clips]
    for slot, key, clip in zip(slots, keys, clips, strict=True):
        sample = train_shards.samples([rows[key]])[0]
        expected = torch.empty_like(clip)
        maker.cut(slot, sample, stored[rows[key]][0], expected)
        assert torch.equal(clip, expected)


def test_spare_frames_are_sampled_anew_every_epoch(train_shards, jpeg_cache: Path) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    for _ in range(2):
        with loader(train_shards, jpeg_cache) as batches:
            for batch in islice(batches, 12):
                for key, clip in zip(batch.keys, batch.clips, strict=True):
                    seen.setdefault(key, []).append(clip)
    twice = [clips for clips in seen.values() if len(clips) == 4]
    assert len(twice) > 15
    assert all(torch.equal(a, c) and torch.equal(b, d) for a, b, c, d in twice)
    assert sum(not torch.equal(a, b) for a, b, _, _ in twice) > len(twice) / 2


def test_torch_keeps_its_threads(train_shards: Shards, raw_cache: Path) -> None:
    before = torch.get_num_threads()
    with loader(train_shards, raw_cache, STILL.model_copy(update={"workers": 2})) as batches:
        next(batches)
        assert torch.get_num_threads() == before


def test_a_second_build_does_nothing(shard_dir: Path, raw_cache: Path) -> None:
    before = (raw_cache / "train.beton").stat().st_mtime_ns
    build_cache(shard_dir, "train", raw_cache, RAW)
    assert (raw_cache / "train.beton").stat().st_mtime_ns == before


def test_a_sample_that_cannot_be_read_ends_the_build(make_shards, tmp_path: Path) -> None:
    """FFCV's own writer would wait for ever."""
    directory = make_shards({"train": [8] * 6})
    sample = open_shards(directory).samples([3])[0]
    tar = bytearray((directory / sample.shard).read_bytes())
    tar[sample.offset + 60] ^= 1
    (directory / sample.shard).write_bytes(tar)
    out = tmp_path / "cache"
    with pytest.raises(DataError, match=f"not built: .*{sample.key} is corrupt") as caught:
        build_cache(directory, "train", out, RAW)
    assert "\n" not in str(caught.value)
    assert not list(out.iterdir())


def test_a_writer_that_does_nothing_is_ended(shard_dir: Path, tmp_path: Path) -> None:
    """The process needs longer than this limit to start, let alone to write."""
    with pytest.raises(DataError, match="did nothing for 0 s"):
        build_cache(shard_dir, "train", tmp_path, RAW, stall_s=0.3)
    assert not list(tmp_path.glob("*"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failing_reader_thread_raises(train_shards, raw_cache, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(ffcv_clips.EpochIterator, "run_pipeline", fail)
    with pytest.raises(DataError, match="FFCV reader stopped"):
        loader(train_shards, raw_cache)


def damaged(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_one_flipped_bit_in_a_clip_is_found(train_shards, copy_of, request, kind: str) -> None:
    cache = copy_of(request.getfixturevalue(f"{kind}_cache"))
    reader = ffcv_clips.BetonReader(cache / "train.beton", 4, threads=1, ahead=1)
    metadata = reader._loader.reader.metadata["f0"]
    damaged(cache / "train.beton", int(metadata["pointer"][11]) + 100)
    with loader(train_shards, cache) as batches, pytest.raises(DataError, match="clip 11 is corr"):
        for _ in islice(batches, 12):
            pass


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "train.cache.json").unlink(), "no finished cache of split 'train'"),
        (lambda d: (d / "train.cache.json").write_text("{"), "not a seal"),
        (lambda d: (d / "train.beton").unlink(), "0 bytes where"),
        (lambda d: (d / "train.beton").write_bytes(b"x" * 100), "100 bytes where"),
        (lambda d: damaged(d / "train.beton", 2000), "tables are not those that were sealed"),
        (lambda d: damaged(d / "train.beton", 0), "not a readable .beton file"),
    ],
)
def test_a_damaged_cache_is_refused(train_shards, raw_cache, copy_of, damage, message) -> None:
    cache = copy_of(raw_cache)
    damage(cache)
    with pytest.raises(DataError, match=message) as caught:
        open_cache(cache, "train", train_shards)
    assert "vmp data cache" in str(caught.value)


def test_a_cache_of_other_shards_is_refused_and_can_be_made_anew(
    make_shards, raw_cache: Path, copy_of
) -> None:
    directory = make_shards({"train": [9] * 26})
    other, cache = open_shards(directory, "train"), copy_of(raw_cache)
    with pytest.raises(DataError, match="made from other shards"):
        loader(other, cache)

    build_cache(directory, "train", cache, RAW)

    with loader(other, cache) as batches:
        assert next(batches).keys


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (STILL, {"num_frames": 5}, "keeps 4 frames of 32 pixels, the model takes 5 of 32"),
        (STILL, {"img_size": 64}, "the model takes 4 of 64"),
        (STILL.model_copy(update={"sampling": "dense"}), {}, "the run wants 'dense'"),
    ],
)
def test_a_cache_that_does_not_fit_is_refused(
    train_shards, raw_cache, config, options, message
) -> None:
    with pytest.raises(DataError, match=message):
        loader(train_shards, raw_cache, config, **options)


def test_the_reader_needs_a_cache(train_shards: Shards) -> None:
    config = STILL.model_copy(update={"reader": "ffcv"})
    with pytest.raises(DataError, match=r"needs data\.ffcv_cache"):
        loader(train_shards, None, config)


def test_the_seal_names_its_source(train_shards: Shards, raw_cache: Path) -> None:
    seal = json.loads((raw_cache / "train.cache.json").read_text())
    assert seal["source"] == train_shards.content_digest
    assert seal["clips"] == 26
