"""How close the loader comes to what the cores can decode, and to its peers on the same work.

Every contender gives clips of the same frames, cut and resized to the same square. Rounds alternate
between contenders, so that a busy machine is busy for all of them; the median round counts.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import webdataset
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.data.augment import augment
from pipeline.data.config import CropConfig, DataConfig
from pipeline.data.decode import decode_frames
from pipeline.data.errors import DataError
from pipeline.data.ffcv_cache import CacheOptions, build_cache, import_ffcv
from pipeline.data.loader import build_train_loader
from pipeline.data.randomness import sample_rng
from pipeline.data.reader import Sample
from pipeline.data.sampling import train_frames
from pipeline.data.shards import Shards, open_shards

ONE_CORE = "decode only, 1 process"
ALL_CORES = "decode only, {workers} processes"
LOADER = "loader"
WEBDATASET = "webdataset"
FFCV_RAW = "ffcv raw"
FFCV_JPEG = "ffcv jpeg"


class LoaderBench(BaseModel):
    """What is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    workers: int = Field(default_factory=lambda: len(os.sched_getaffinity(0)), ge=1)
    """Loader processes; the cores this process may use."""
    batch_size: int = Field(8, ge=1)
    num_frames: int = Field(16, ge=1)
    img_size: int = Field(224, ge=1)
    crop: CropConfig = CropConfig()
    rounds: int = Field(3, ge=1)
    seconds: float = Field(6.0, gt=0)
    """Per contender and round."""
    with_ffcv: bool = True
    """Also build FFCV caches of the data in a temporary directory and read them."""


@dataclass(frozen=True)
class LoaderReport:
    """Clips per second of every contender, one entry per round."""

    bench: LoaderBench
    rates: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return float(statistics.median(self.rates[name]))

    def ratio(self, name: str, peer: str) -> float:
        """Median over the rounds of the ratio within a round."""
        pairs = zip(self.rates[name], self.rates[peer], strict=True)
        return float(statistics.median(own / other for own, other in pairs))

    def lines(self) -> list[str]:
        """The table that `vmp bench loader` prints."""
        workers = self.bench.workers
        all_cores = ALL_CORES.format(workers=workers)
        table = [f"{'contender':<28}{'clips/s':>10}{'of loader':>11}"]
        for name in self.rates:
            table.append(f"{name:<28}{self.median(name):>10.1f}{self.ratio(name, LOADER):>10.2f}x")
        table += [
            "",
            f"loader / ({workers} x one core's decode rate)   "
            f"{self.ratio(LOADER, ONE_CORE) / workers:.2f}",
            f"loader / decode rate of {workers} busy cores    {self.ratio(LOADER, all_cores):.2f}",
            f"loader / webdataset                   {self.ratio(LOADER, WEBDATASET):.2f}",
        ]
        table += [
            f"{name} / loader                     {self.ratio(name, LOADER):.1f}"
            for name in (FFCV_RAW, FFCV_JPEG)
            if name in self.rates
        ]
        table.append(self._limit(all_cores))
        return table

    def _limit(self, all_cores: str) -> str:
        scaling = self.ratio(all_cores, ONE_CORE) / self.bench.workers
        spent = 1 - self.ratio(LOADER, all_cores)
        return (
            f"limit: decoding; {self.bench.workers} busy cores decode at {scaling:.0%} of their "
            f"lone speed each, and {max(0.0, spent):.0%} of the loader's time goes to cutting, "
            "resizing and handing over"
        )


def bench_loader(
    directory: Path | str,
    bench: LoaderBench | None = None,
    *,
    split: str = "train",
    progress: Callable[[str], object] = lambda _: None,
) -> LoaderReport:
    """Measure all contenders on a shard directory; `progress` gets a line per measurement.

    Raises DataError when the directory is no shard directory or too small for one batch.
    """
    bench = bench or LoaderBench()
    shards = open_shards(directory, split)
    report = LoaderReport(bench)
    with tempfile.TemporaryDirectory() as scratch:
        contenders = _contenders(shards, split, bench, Path(scratch))
        for number in range(bench.rounds):
            for name, measure in contenders.items():
                rate = measure()
                report.rates.setdefault(name, []).append(rate)
                progress(f"round {number + 1}: {name} {rate:.1f} clips/s")
    return report


def _contenders(
    shards: Shards, split: str, bench: LoaderBench, scratch: Path
) -> dict[str, Callable[[], float]]:
    contenders: dict[str, Callable[[], float]] = {
        ONE_CORE: lambda: _decode_rate(shards, bench, 1),
        ALL_CORES.format(workers=bench.workers): lambda: _decode_rate(shards, bench, bench.workers),
        LOADER: lambda: _loader_rate(shards, bench, _config(shards, split, bench)),
        WEBDATASET: lambda: _webdataset_rate(shards, bench),
    }
    if bench.with_ffcv:
        import_ffcv()
        for name, quality in ((FFCV_RAW, 0), (FFCV_JPEG, 85)):
            out = scratch / name.replace(" ", "_")
            options = CacheOptions(frames=bench.num_frames, size=bench.img_size, quality=quality)
            build_cache(shards.location, split, out, options, workers=bench.workers)
            config = _config(shards, split, bench, reader="ffcv", ffcv_cache=out)
            contenders[name] = lambda config=config: _loader_rate(shards, bench, config)  # type: ignore[misc]
    return contenders


def _config(shards: Shards, split: str, bench: LoaderBench, **changes: Any) -> DataConfig:
    return DataConfig(
        train=shards.location,
        train_split=split,
        workers=bench.workers,
        crop=bench.crop,
        **changes,
    )


def _loader_rate(shards: Shards, bench: LoaderBench, config: DataConfig) -> float:
    with build_train_loader(
        shards,
        config,
        img_size=bench.img_size,
        num_frames=bench.num_frames,
        seed=0,
        global_batch=bench.batch_size,
        micro_batch=bench.batch_size,
    ) as loader:
        return _clips_per_s((len(batch.keys) for batch in loader), bench)


def _clips_per_s(batches: Iterator[int], bench: LoaderBench) -> float:
    """Clips per second once the processes have started and their queues are full."""
    for _ in itertools.islice(batches, 3 * bench.workers):
        pass
    count, begin = 0, time.perf_counter()
    for clips in batches:
        count += clips
        elapsed = time.perf_counter() - begin
        if elapsed > bench.seconds:
            return count / elapsed
    raise DataError("the data ended before the measurement; this is a bug of the benchmark")


def _decode_rate(shards: Shards, bench: LoaderBench, processes: int) -> float:
    """Clips per second that `processes` decode from memory, without anything else."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    with context.Pool(processes, _set_barrier, (barrier,)) as pool:
        return sum(pool.starmap(_decode_alone, [(shards, bench)] * processes, chunksize=1))


def _set_barrier(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


_barrier: Any = None


def _decode_alone(shards: Shards, bench: LoaderBench) -> float:
    torch.set_num_threads(1)
    samples = shards.samples(list(range(min(len(shards), 200))))
    reader = shards.reader()
    videos = [(sample, reader.read(sample)) for sample in samples]
    _decode(*videos[0], bench)
    _barrier.wait()
    count, begin = 0, time.perf_counter()
    for sample, video in itertools.cycle(videos):
        _decode(sample, video, bench)
        count += 1
        elapsed = time.perf_counter() - begin
        if elapsed > bench.seconds:
            break
    return count / elapsed


def _decode(sample: Sample, video: bytes, bench: LoaderBench) -> Any:
    rng = sample_rng(0, 0, sample.key, 0, "frames")
    wanted = train_frames("tsn", sample.frames, bench.num_frames, 1, rng)
    return decode_frames(video, wanted, sample.keyframes)


def _webdataset_rate(shards: Shards, bench: LoaderBench) -> float:
    """The usual pipeline: shuffled tars, the same decoding and cutting, torch's DataLoader."""
    rows = {sample.key: sample for sample in shards.samples(list(range(len(shards))))}
    names = sorted({sample.shard for sample in rows.values()})
    urls = [f"{shards.location}/{name}" for name in names]
    dataset = (
        webdataset.WebDataset(
            urls * max(1, 2 * bench.workers // len(urls)),
            shardshuffle=len(urls),
            nodesplitter=webdataset.split_by_node,
            empty_check=False,
        )
        .shuffle(100)
        .map(_WebClip(rows, bench))
        .repeat()
    )
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        dataset,
        batch_size=bench.batch_size,
        num_workers=bench.workers,
        multiprocessing_context="forkserver",
    )
    return _clips_per_s((len(label) for _, label in loader), bench)


@dataclass(frozen=True)
class _WebClip:
    rows: dict[str, Sample]
    bench: LoaderBench

    def __call__(self, sample: dict[str, Any]) -> tuple[Tensor, int]:
        row = self.rows[sample["__key__"]]
        frames = _decode(row, sample["mp4"], self.bench)
        rng = sample_rng(0, 0, row.key, 0, "cut")
        clip = augment(frames, self.bench.crop, 0.5, self.bench.img_size, rng)
        return clip.contiguous(), row.label
