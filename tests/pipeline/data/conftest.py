"""Small sealed shard directories with real H.264 clips."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from av.video.frame import VideoFrame

from data_prep.schema import INDEX_NAME, INDEX_SCHEMA, MANIFEST_NAME, Manifest, ShardRecord
from data_prep.video.h264 import TIME_BASE, encode_clip
from pipeline.data.shards import Shards, open_shards

FPS = 8


def _moving_squares(seed: int, frames: int, height: int, width: int) -> np.ndarray:
    """(frames, height, width, 3) uint8: blocks of colour that move one block per frame."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (height // 4 + frames, width // 4, 3), dtype=np.uint8)
    pixels = blocks.repeat(4, axis=0).repeat(4, axis=1)
    return np.stack([pixels[4 * i : 4 * i + height] for i in range(frames)])


def _encode(pixels: np.ndarray) -> tuple[bytes, tuple[int, ...]]:
    """An mp4 in the prepared form and its keyframes."""
    frames = (VideoFrame.from_ndarray(picture).reformat(format="yuv420p") for picture in pixels)
    times = (round(i / FPS / TIME_BASE) for i in range(len(pixels)))
    clip = encode_clip(
        zip(frames, times, strict=False),
        width=pixels.shape[2],
        height=pixels.shape[1],
        fps=FPS,
        crf=20,
    )
    return clip.video, clip.keyframes


def write_shards(
    out: Path,
    lengths: dict[str, list[int]],
    *,
    per_shard: int = 4,
    size: tuple[int, int] = (32, 48),
    classes: tuple[str, ...] = ("class0", "class1", "class2"),
) -> Path:
    """A sealed directory with one clip of each given length (frames) per split."""
    out.mkdir()
    rows, records = [], []
    for split, counts in lengths.items():
        for first in range(0, len(counts), per_shard):
            name = f"{split}-{first // per_shard:06d}.tar"
            members = {}
            with webdataset.TarWriter(str(out / name), mtime=0) as tar:
                for number in range(first, min(first + per_shard, len(counts))):
                    key = hashlib.sha256(f"{split}/{number}".encode()).hexdigest()[:16]
                    pixels = _moving_squares(number, counts[number], *size)
                    video, keyframes = _encode(pixels)
                    label = number % len(classes)
                    meta = json.dumps({"label": label}).encode()
                    tar.write({"__key__": key, "mp4": video, "json": meta})
                    members[key] = (video, keyframes, label, counts[number])
            content = (out / name).read_bytes()
            for key, (video, keyframes, label, frames) in members.items():
                rows.append(
                    {
                        "key": key,
                        "split": split,
                        "shard": name,
                        "offset": content.index(video),
                        "size": len(video),
                        "sha256": hashlib.sha256(video).hexdigest(),
                        "label": label,
                        "frames": frames,
                        "fps": float(FPS),
                        "width": size[1],
                        "height": size[0],
                        "duration_s": frames / FPS,
                        "keyframes": keyframes,
                        "source": f"{split}/{key}.mp4",
                    }
                )
            records.append(
                ShardRecord(
                    name=name,
                    split=split,
                    samples=len(members),
                    bytes=len(content),
                    sha256=hashlib.sha256(content).hexdigest(),
                )
            )
    index = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA), index)
    (out / INDEX_NAME).write_bytes(index.getvalue())
    seal(out, tuple(records), {split: len(counts) for split, counts in lengths.items()}, classes)
    return out


def seal(
    out: Path, records: tuple[ShardRecord, ...], splits: dict[str, int], classes: tuple[str, ...]
) -> None:
    manifest = Manifest(
        dataset="squares",
        classes=classes,
        splits=splits,
        settings={},
        shards=records,
        index_sha256=hashlib.sha256((out / INDEX_NAME).read_bytes()).hexdigest(),
    ).sealed()
    (out / MANIFEST_NAME).write_text(manifest.model_dump_json())


LENGTHS = {"train": [8 + i % 30 for i in range(26)], "val": [8 + i % 5 for i in range(7)]}


@pytest.fixture(scope="session")
def moving_squares() -> Callable[[int, int, int, int], np.ndarray]:
    return _moving_squares


@pytest.fixture(scope="session")
def encode() -> Callable[[np.ndarray], tuple[bytes, tuple[int, ...]]]:
    return _encode


@pytest.fixture(scope="session")
def shard_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 training clips of 8 to 33 frames in 7 shards, 7 validation clips in 2; read only."""
    return write_shards(tmp_path_factory.mktemp("data") / "shards", LENGTHS)


@pytest.fixture(scope="session")
def train_shards(shard_dir: Path) -> Shards:
    return open_shards(shard_dir, "train")


@pytest.fixture(scope="session")
def val_shards(shard_dir: Path) -> Shards:
    return open_shards(shard_dir, "val")


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Path]:
    """Makes a shard directory that the test may damage."""

    def make(lengths: dict[str, list[int]] | None = None, **options: object) -> Path:
        return write_shards(tmp_path / "shards", lengths or {"train": [8] * 6}, **options)

    return make
