"""Compares the loader with pure decoding, webdataset and FFCV.

python benchmarks/loader.py                 # on generated clips of 340x256, 280 frames
python benchmarks/loader.py --shards DIR    # on your own
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from av.video.frame import VideoFrame

from data_prep.schema import INDEX_NAME, INDEX_SCHEMA, MANIFEST_NAME, Manifest, ShardRecord
from data_prep.video.h264 import TIME_BASE, EncodedClip, encode_clip
from pipeline.bench.loader import LoaderBench, bench_loader

FRAMES, HEIGHT, WIDTH, FPS = 280, 256, 340, 25
PER_SHARD = 16


def scene(seed: int) -> Iterator[tuple[VideoFrame, int]]:
    """A textured background that pans and three textured things that move over it, with noise."""
    rng = np.random.default_rng(seed)

    def texture(height: int, width: int) -> np.ndarray:
        coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3))
        fine = rng.normal(0, 12, (height, width, 3))
        smooth = coarse.repeat(8, 0).repeat(8, 1)[:height, :width]
        return np.clip(smooth * 0.8 + fine, 0, 255)

    background = texture(HEIGHT + 60, WIDTH + 60)
    things = [(texture(70, 70), rng.uniform(0, 6.28, 2), rng.uniform(0.02, 0.08)) for _ in range(3)]
    for t in range(FRAMES):
        dy, dx = int(30 + 29 * np.sin(t / 90)), int(30 + 29 * np.cos(t / 70))
        picture = background[dy : dy + HEIGHT, dx : dx + WIDTH].copy()
        for thing, (py, px), speed in things:
            y = int((HEIGHT - 70) * (0.5 + 0.5 * np.sin(py + speed * t)))
            x = int((WIDTH - 70) * (0.5 + 0.5 * np.sin(px + 0.8 * speed * t)))
            picture[y : y + 70, x : x + 70] = thing
        picture += rng.normal(0, 3, picture.shape)
        pixels = np.clip(picture, 0, 255).astype(np.uint8)
        yield VideoFrame.from_ndarray(pixels).reformat(format="yuv420p"), round(t / FPS / TIME_BASE)


def encoded(seed: int) -> EncodedClip:
    return encode_clip(scene(seed), width=WIDTH, height=HEIGHT, fps=FPS, crf=23)


def write_shards(out: Path, clips: int) -> None:
    out.mkdir()
    rows, records = [], []
    with ProcessPoolExecutor() as pool:
        videos = list(pool.map(encoded, range(clips)))
    for first in range(0, clips, PER_SHARD):
        name = f"train-{first // PER_SHARD:06d}.tar"
        numbers = range(first, min(first + PER_SHARD, clips))
        with webdataset.TarWriter(str(out / name), mtime=0) as tar:
            for number in numbers:
                meta = json.dumps({"label": number % 4}).encode()
                tar.write({"__key__": f"{number:08x}", "mp4": videos[number].video, "json": meta})
        content = (out / name).read_bytes()
        for number in numbers:
            clip = videos[number]
            rows.append(
                {
                    "key": f"{number:08x}",
                    "split": "train",
                    "shard": name,
                    "offset": content.index(clip.video),
                    "size": len(clip.video),
                    "sha256": hashlib.sha256(clip.video).hexdigest(),
                    "label": number % 4,
                    "frames": clip.frames,
                    "fps": float(FPS),
                    "width": WIDTH,
                    "height": HEIGHT,
                    "duration_s": clip.duration_s,
                    "keyframes": clip.keyframes,
                    "source": f"{number}",
                }
            )
        sha256 = hashlib.sha256(content).hexdigest()
        records.append(
            ShardRecord(
                name=name, split="train", samples=len(numbers), bytes=len(content), sha256=sha256
            )
        )
    index = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA), index)
    (out / INDEX_NAME).write_bytes(index.getvalue())
    manifest = Manifest(
        dataset="generated scenes",
        classes=("a", "b", "c", "d"),
        splits={"train": clips},
        settings={},
        shards=tuple(records),
        index_sha256=hashlib.sha256(index.getvalue()).hexdigest(),
    ).sealed()
    (out / MANIFEST_NAME).write_text(manifest.model_dump_json())
    size = sum(len(clip.video) for clip in videos) / clips
    print(f"{clips} clips of {WIDTH}x{HEIGHT}, {FRAMES} frames, {size / 1e3:.0f} kB each")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0)
    options = parser.parse_args()
    bench = LoaderBench(rounds=options.rounds, seconds=options.seconds)
    with tempfile.TemporaryDirectory() as scratch:
        shards = options.shards or Path(scratch) / "shards"
        if options.shards is None:
            write_shards(shards, options.clips)
        print("\n".join(bench_loader(shards, bench, progress=print).lines()))


if __name__ == "__main__":
    main()
