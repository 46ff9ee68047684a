"""What the global order and the index cost as a data set grows.

Every line is measured in a process of its own, so that its peak memory is its own. Beside each full
shuffle stands `torch.randperm` of the same length, in the same process. The index is a real parquet
file with rows like those of Kinetics (10 s per clip, a keyframe every 16 frames).
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.table import Table

from data_prep.schema import INDEX_NAME, INDEX_SCHEMA, MANIFEST_NAME, Manifest, ShardRecord
from pipeline.data.index import Index
from pipeline.data.order import ElasticBatches
from pipeline.data.shards import Shards, open_shards

SAMPLES_PER_SHARD = 1000
SHARDS_PER_WINDOW = 64
BYTES_PER_SAMPLE = 600_000
CLASSES = 400
NO_HASH = "0" * 64
KEYFRAMES = list(range(0, 300, 16))
Result = TypeVar("Result")


def bench_order(samples: Sequence[int], index_samples: Sequence[int]) -> Iterator[Table]:
    """One table of the order of an epoch, then one of the index; a row per number of samples."""
    table = Table(title="order of one epoch")
    for heading in (
        "samples",
        "shuffled shards",
        "s",
        "of randperm",
        "peak MB",
        "kept MB",
        "ms/256",
    ):
        table.add_column(heading, justify="right")
    for count in samples:
        for window in (0, SHARDS_PER_WINDOW):
            got = _alone(measure_order, count, window)
            table.add_row(
                f"{count:,}",
                f"{window} at a time" if window else "all at once",
                f"{got['seconds']:.2f}",
                f"{got['seconds'] / got['randperm_s']:.1f}x",
                f"{got['peak_mb']:.0f}",
                f"{got['kept_mb']:.0f}",
                f"{got['batch_ms']:.2f}",
            )
    yield table
    table = Table(title="index")
    for heading in ("rows", "first open s", "again s", "private MB", "B/row file", "us/row"):
        table.add_column(heading, justify="right")
    for count in index_samples:
        got = _alone(measure_index, count)
        table.add_row(
            f"{count:,}",
            f"{got['first_s']:.2f}",
            f"{got['again_s']:.2f}",
            f"{got['private_mb']:.0f}",
            f"{got['file_bytes']:.0f}",
            f"{got['row_us']:.1f}",
        )
    yield table


def _alone(measure: Callable[..., dict[str, float]], *arguments: int) -> dict[str, float]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def _timed(function: Callable[..., Result], *args: Any) -> tuple[float, Result]:
    begin = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - begin, result


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_order(samples: int, window: int) -> dict[str, float]:
    """Seconds and peak MB of one epoch's order, and of a batch out of the middle of it."""
    codes = np.arange(samples, dtype=np.int32) // SAMPLES_PER_SHARD
    part = pa.record_batch([codes], names=["shard"])
    manifest = Manifest(
        dataset="d", classes=(), splits={}, settings={}, shards=(), index_sha256=NO_HASH
    )
    shards = Shards("nowhere", manifest, Index((part,)))
    before = _peak_mb()
    seconds, order = _timed(shards.order, 0, 0, window)
    peak = _peak_mb() - before
    batches = ElasticBatches(lambda _: order, samples, 256, 8, start=samples // 512 * 256)
    batch_s, _ = _timed(lambda: list(islice(batches, 32)))
    torch_s, _ = _timed(torch.randperm, samples)
    return {
        "seconds": seconds,
        "peak_mb": peak,
        "kept_mb": order.nbytes / 2**20,
        "batch_ms": batch_s * 1e3,
        "randperm_s": torch_s,
    }


def measure_index(samples: int) -> dict[str, float]:
    """Seconds and private MB of opening an index of this many rows twice, and of reading rows."""
    with tempfile.TemporaryDirectory(prefix="vmp-bench-") as folder:
        directory = Path(folder)
        tempfile.tempdir = folder  # of this process, which measures nothing else: for what is kept
        _write_index(directory, samples)
        first_s, _ = _timed(open_shards, directory, "train")
        read, write = os.pipe()
        if os.fork() == 0:
            before = psutil.Process().memory_full_info().uss
            seconds, shards = _timed(open_shards, directory, "train")
            private = psutil.Process().memory_full_info().uss - before
            rows = np.random.default_rng(0).integers(0, samples, (20, 64))
            rows_s = np.median([_timed(shards.samples, some)[0] for some in rows])
            result = {
                "again_s": seconds,
                "private_mb": private / 2**20,
                "row_us": float(rows_s) / 64e-6,
            }
            os.write(write, json.dumps(result).encode())
            os._exit(0)
        os.wait()
        size = (directory / INDEX_NAME).stat().st_size / samples
        return {"first_s": first_s, "file_bytes": size, **json.loads(os.read(read, 10**6))}


def _write_index(directory: Path, samples: int) -> None:
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
                "offset": [(i % SAMPLES_PER_SHARD) * BYTES_PER_SAMPLE for i in numbers],
                "size": [590_000 + i % 5000 for i in numbers],
                "sha256": digests,
                "label": [i % CLASSES for i in numbers],
                "frames": [300] * count,
                "fps": [30.0] * count,
                "width": [340] * count,
                "height": [256] * count,
                "duration_s": [10.0] * count,
                "keyframes": [KEYFRAMES] * count,
                "source": [f"class/{digest[:11]}_000010_000020.mp4" for digest in digests],
            }
            writer.write_table(pa.table(columns, INDEX_SCHEMA))
    records = []
    for first in range(0, samples, SAMPLES_PER_SHARD):
        count = min(SAMPLES_PER_SHARD, samples - first)
        name = f"train-{first // SAMPLES_PER_SHARD:06d}.tar"
        size = count * BYTES_PER_SAMPLE
        with (directory / name).open("wb") as tar:
            tar.truncate(size)  # a hole: nothing reads it
        records.append(
            ShardRecord(name=name, split="train", samples=count, bytes=size, sha256=NO_HASH)
        )
    manifest = Manifest(
        dataset="d",
        classes=tuple(f"class {number}" for number in range(CLASSES)),
        splits={"train": samples},
        settings={},
        shards=tuple(records),
        index_sha256=hashlib.sha256((directory / INDEX_NAME).read_bytes()).hexdigest(),
    ).sealed()
    (directory / MANIFEST_NAME).write_text(manifest.model_dump_json())
