"""Costs of the global order and the index at 240 thousand, 10 million and 100 million samples.

    python benchmarks/order_scale.py
    python benchmarks/order_scale.py --samples 240000 10000000

Every line is a process of its own, so that its peak memory is its own. Beside each full shuffle
stands `torch.randperm` of the same length, in the same process. The index is a real parquet file
of `--index-samples` rows like those of Kinetics (10 s per clip, a keyframe every 16 frames).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from data_prep.schema import INDEX_NAME, INDEX_SCHEMA, MANIFEST_NAME, Manifest, ShardRecord
from pipeline.data.index import Index
from pipeline.data.order import ElasticBatches
from pipeline.data.shards import Shards, open_shards

SAMPLES_PER_SHARD = 1000
SHARDS_PER_WINDOW = 64
KEYFRAMES = list(range(0, 300, 16))


def timed(function, *args: object) -> tuple[float, object]:
    begin = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - begin, result


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_order(samples: int, window: int) -> dict[str, float]:
    """Seconds and peak MB of one epoch's order, and of a batch out of the middle of it."""
    codes = np.arange(samples, dtype=np.int32) // SAMPLES_PER_SHARD
    part = pa.record_batch([codes], names=["shard"])
    manifest = Manifest(dataset="d", classes=(), splits={}, settings={}, shards=(), index_sha256="")
    shards = Shards("nowhere", manifest, Index((part,)))
    before = peak_mb()
    seconds, order = timed(shards.order, 0, 0, window)
    peak = peak_mb() - before
    batches = ElasticBatches(lambda _: order, samples, 256, 8, start=samples // 512 * 256)
    batch_s, _ = timed(lambda: list(islice(batches, 32)))
    torch_s, _ = timed(torch.randperm, samples)
    return {
        "seconds": seconds,
        "peak_mb": peak,
        "kept_mb": order.nbytes / 2**20,
        "batch_ms": batch_s * 1e3,
        "randperm_s": torch_s,
    }


def measure_index(samples: int) -> dict[str, float]:
    """Seconds and private MB of opening an index of this many rows twice, and of reading rows."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        tempfile.tempdir = folder
        write_index(directory, samples)
        first_s, _ = timed(open_shards, directory, "train")
        read, write = os.pipe()
        if os.fork() == 0:
            before = psutil.Process().memory_full_info().uss
            seconds, shards = timed(open_shards, directory, "train")
            private = psutil.Process().memory_full_info().uss - before
            rows = np.random.default_rng(0).integers(0, samples, (20, 64))
            rows_s = np.median([timed(shards.samples, some)[0] for some in rows])
            result = {"again_s": seconds, "private_mb": private / 2**20, "row_us": rows_s / 64e-6}
            os.write(write, json.dumps(result).encode())
            os._exit(0)
        os.wait()
        size = (directory / INDEX_NAME).stat().st_size / samples
        return {"first_s": first_s, "file_bytes": size, **json.loads(os.read(read, 10**6))}


def write_index(directory: Path, samples: int) -> None:
    chunk = 100_000
    with pq.ParquetWriter(directory / INDEX_NAME, INDEX_SCHEMA) as writer:
        for first in range(0, samples, chunk):
            numbers = range(first, min(first + chunk, samples))
            digests = [hashlib.sha256(str(i).encode()).hexdigest() for i in numbers]
            count = len(digests)
            columns = {
                "key": [digest[:32] for digest in digests],
                "split": ["train"] * count,
                "shard": [f"train-{i // SAMPLES_PER_SHARD:06d}.tar" for i in numbers],
                "offset": [(i % SAMPLES_PER_SHARD) * 600_000 for i in numbers],
                "size": [590_000 + i % 5000 for i in numbers],
                "sha256": digests,
                "label": [i % 400 for i in numbers],
                "frames": [300] * count,
                "fps": [30.0] * count,
                "width": [340] * count,
                "height": [256] * count,
                "duration_s": [10.0] * count,
                "keyframes": [KEYFRAMES] * count,
                "source": [f"class/{digest[:11]}_000010_000020.mp4" for digest in digests],
            }
            writer.write_table(pa.table(columns, INDEX_SCHEMA))
    names = [f"train-{i:06d}.tar" for i in range(-(-samples // SAMPLES_PER_SHARD))]
    for name in names:
        (directory / name).touch()
    manifest = Manifest(
        dataset="d",
        classes=("a",),
        splits={"train": samples},
        settings={},
        shards=tuple(
            ShardRecord(name=name, split="train", samples=SAMPLES_PER_SHARD, bytes=0, sha256="")
            for name in names
        ),
        index_sha256=hashlib.sha256((directory / INDEX_NAME).read_bytes()).hexdigest(),
    ).sealed()
    (directory / MANIFEST_NAME).write_text(manifest.model_dump_json())


def in_a_process(*job: object) -> dict[str, float]:
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[240_000, 10**7, 10**8])
    parser.add_argument("--index-samples", type=int, nargs="+", default=[240_000, 4_000_000])
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        kind, *rest = options.job
        print(json.dumps({"order": measure_order, "index": measure_index}[kind](*rest)))
        return
    print(
        f"{'order of one epoch':<34}{'s':>8}{'of randperm':>12}{'peak MB':>9}{'kept MB':>9}"
        f"{'ms/256':>8}"
    )
    for samples in options.samples:
        for window in (0, SHARDS_PER_WINDOW):
            got = in_a_process("order", samples, window)
            name = f"{samples:>11,} {'all shards' if not window else f'{window} shards at a time'}"
            print(
                f"{name:<34}{got['seconds']:>8.2f}{got['seconds'] / got['randperm_s']:>11.1f}x"
                f"{got['peak_mb']:>9.0f}{got['kept_mb']:>9.0f}{got['batch_ms']:>8.2f}"
            )
    print(
        f"\n{'index':<14}{'first open s':>14}{'again s':>9}{'private MB':>12}{'B/row file':>12}"
        f"{'us/row':>8}"
    )
    for samples in options.index_samples:
        got = in_a_process("index", samples)
        print(
            f"{samples:<14,}{got['first_s']:>14.2f}{got['again_s']:>9.2f}{got['private_mb']:>12.0f}"
            f"{got['file_bytes']:>12.0f}{got['row_us']:>8.1f}"
        )


if __name__ == "__main__":
    main()
