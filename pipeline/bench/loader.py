"""`vmp bench loader`: the loader next to pure decoding and to its peers on the same work.

Every contender yields clips of the same frames, cropped and resized to the same square. Rounds
alternate between contenders, so that a busy machine slows all of them; the median round counts.
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
from typing import Any, NamedTuple

import psutil
import torch
import webdataset
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.data.augment import augment
from pipeline.data.config import CropConfig, DataConfig
from pipeline.data.decode import decode_frames
from pipeline.data.errors import DataError
from pipeline.data.ffcv.cache import CacheOptions, build_cache, import_ffcv
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
    """Options of the measurement."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    workers: int = Field(default_factory=lambda: len(os.sched_getaffinity(0)), ge=1)
    """Loader processes; by default as many as the cores that this process may use."""
    batch_size: int = Field(8, ge=1)
    num_frames: int = Field(16, ge=1)
    img_size: int = Field(224, ge=1)
    crop: CropConfig = CropConfig()
    rounds: int = Field(3, ge=1)
    seconds: float = Field(6.0, gt=0)
    """Seconds of measurement per contender and round."""
    with_ffcv: bool = True
    """Also build FFCV caches of the data in a temporary directory and read them, if installed."""


class Speed(NamedTuple):
    clips_per_s: float
    cpu_ms: float
    """CPU milliseconds per clip of all processes involved; other load distorts them little."""


@dataclass(frozen=True)
class LoaderReport:
    """The speed of every contender, one entry per round."""

    bench: LoaderBench
    speeds: dict[str, list[Speed]] = field(default_factory=dict)

    def clips_per_s(self, name: str) -> float:
        return float(statistics.median(speed.clips_per_s for speed in self.speeds[name]))

    def cpu_ms(self, name: str) -> float:
        return float(statistics.median(speed.cpu_ms for speed in self.speeds[name]))

    def ratio(self, name: str, peer: str) -> float:
        """Return the throughput relative to that of a peer, as the median of the rounds' ratios."""
        pairs = zip(self.speeds[name], self.speeds[peer], strict=True)
        return float(statistics.median(a.clips_per_s / b.clips_per_s for a, b in pairs))

    def lines(self) -> list[str]:
        """Return the lines that `vmp bench loader` prints."""
        workers = self.bench.workers
        all_cores = ALL_CORES.format(workers=workers)
        table = [f"{'contender':<28}{'clips/s':>10}{'CPU ms/clip':>13}{'of loader':>11}"]
        for name in self.speeds:
            rate, cpu = self.clips_per_s(name), self.cpu_ms(name)
            table.append(f"{name:<28}{rate:>10.1f}{cpu:>13.1f}{self.ratio(name, LOADER):>10.2f}x")
        efficiency = self.cpu_ms(all_cores) / self.cpu_ms(LOADER)
        of_cores = self.ratio(LOADER, ONE_CORE) / workers
        ratios = {
            f"loader / ({workers} x one core's decode rate)": of_cores,
            f"loader / decode rate of {workers} busy cores": self.ratio(LOADER, all_cores),
            "share of the loader's CPU time that is decoding": efficiency,
            "loader / webdataset": self.ratio(LOADER, WEBDATASET),
        }
        for name in (FFCV_RAW, FFCV_JPEG):
            if name in self.speeds:
                ratios[f"{name} / loader"] = self.ratio(name, LOADER)
        table += ["", *(f"{name:<52}{ratio:>7.2f}" for name, ratio in ratios.items())]
        return [*table, self._limit(all_cores)]

    def _limit(self, all_cores: str) -> str:
        scaling = self.ratio(all_cores, ONE_CORE) / self.bench.workers
        return (
            f"limit: decoding on the CPU; {self.bench.workers} busy cores decode at {scaling:.0%} "
            "of a lone one's speed each"
        )


def bench_loader(
    directory: Path | str,
    bench: LoaderBench | None = None,
    *,
    split: str = "train",
    progress: Callable[[str], object] = lambda _: None,
) -> LoaderReport:
    """Measure all contenders on a shard directory; `progress` receives a line per measurement.

    Raises DataError when the directory is not a shard directory or does not fill a batch.
    """
    bench = bench or LoaderBench()
    shards = open_shards(directory, split)
    if shards.manifest.adopted:
        raise DataError(
            f"{directory}: adopted tars, which the peers of this measurement cannot decode; "
            "measure on shards of `vmp data shard`"
        )
    report = LoaderReport(bench)
    with tempfile.TemporaryDirectory() as scratch:
        contenders = _contenders(shards, split, bench, Path(scratch), progress)
        for number in range(bench.rounds):
            for name, measure in contenders.items():
                speed = measure()
                report.speeds.setdefault(name, []).append(speed)
                progress(f"round {number + 1}: {name} {speed.clips_per_s:.1f} clips/s")
    return report


def _contenders(
    shards: Shards,
    split: str,
    bench: LoaderBench,
    scratch: Path,
    progress: Callable[[str], object],
) -> dict[str, Callable[[], Speed]]:
    contenders: dict[str, Callable[[], Speed]] = {
        ONE_CORE: lambda: _decode_speed(shards, bench, 1),
        ALL_CORES.format(workers=bench.workers): lambda: _decode_speed(
            shards, bench, bench.workers
        ),
        LOADER: lambda: _loader_speed(shards, bench, _config(shards, split, bench)),
        WEBDATASET: lambda: _webdataset_speed(shards, bench),
    }
    if bench.with_ffcv and _ffcv_is_installed(progress):
        for name, quality in ((FFCV_RAW, 0), (FFCV_JPEG, 85)):
            out = scratch / name.replace(" ", "_")
            options = CacheOptions(frames=bench.num_frames, size=bench.img_size, quality=quality)
            build_cache(shards.location, split, out, options, workers=bench.workers)
            config = _config(shards, split, bench, reader="ffcv", ffcv_cache=out)
            contenders[name] = lambda config=config: _loader_speed(shards, bench, config)  # type: ignore[misc]
    return contenders


def _ffcv_is_installed(progress: Callable[[str], object]) -> bool:
    try:
        import_ffcv()
    except DataError as error:
        progress(f"without FFCV: {error}")
        return False
    return True


def _config(shards: Shards, split: str, bench: LoaderBench, **changes: Any) -> DataConfig:
    return DataConfig(
        train=shards.location,
        train_split=split,
        workers=bench.workers,
        crop=bench.crop,
        **changes,
    )


def _loader_speed(shards: Shards, bench: LoaderBench, config: DataConfig) -> Speed:
    with build_train_loader(
        shards,
        config,
        img_size=bench.img_size,
        num_frames=bench.num_frames,
        seed=0,
        global_batch=bench.batch_size,
        micro_batch=bench.batch_size,
    ) as loader:
        return _speed((len(batch.keys) for batch in loader), bench)


def _speed(batches: Iterator[int], bench: LoaderBench) -> Speed:
    """Measure an endless loader, once its processes have started and its queues are full."""
    for _ in itertools.islice(batches, 3 * bench.workers):
        pass
    count, begin, cpu = 0, time.perf_counter(), _cpu_s()
    for clips in batches:
        count += clips
        elapsed = time.perf_counter() - begin
        if elapsed > bench.seconds:
            break
    return Speed(count / elapsed, 1e3 * (_cpu_s() - cpu) / count)


def _cpu_s() -> float:
    """Return the CPU seconds of this process and of its current loader processes."""
    processes = [child.pid for child in multiprocessing.active_children()]
    times = [psutil.Process(pid).cpu_times() for pid in [os.getpid(), *processes]]
    return float(sum(spent.user + spent.system for spent in times))


def _decode_speed(shards: Shards, bench: LoaderBench, processes: int) -> Speed:
    """Measure how fast `processes` processes decode from memory and do nothing else."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    with context.Pool(processes, _set_barrier, (barrier,)) as pool:
        speeds = pool.starmap(_decode_alone, [(shards, bench)] * processes, chunksize=1)
    return Speed(
        sum(speed.clips_per_s for speed in speeds), statistics.mean(s.cpu_ms for s in speeds)
    )


def _set_barrier(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


_barrier: Any = None


def _decode_alone(shards: Shards, bench: LoaderBench) -> Speed:
    torch.set_num_threads(1)
    samples = shards.samples(list(range(min(len(shards), 200))))
    reader = shards.reader()
    videos = [(sample, reader.read(sample)) for sample in samples]
    _decode(*videos[0], bench)
    _barrier.wait()
    count, begin, cpu = 0, time.perf_counter(), time.process_time()
    for sample, video in itertools.cycle(videos):
        _decode(sample, video, bench)
        count += 1
        elapsed = time.perf_counter() - begin
        if elapsed > bench.seconds:
            break
    return Speed(count / elapsed, 1e3 * (time.process_time() - cpu) / count)


def _decode(sample: Sample, video: bytes, bench: LoaderBench) -> Any:
    rng = sample_rng(0, 0, sample.key, 0, "frames")
    wanted = train_frames("tsn", sample.frames, bench.num_frames, 1, rng)
    return decode_frames(video, wanted, sample.keyframes)


def _webdataset_speed(shards: Shards, bench: LoaderBench) -> Speed:
    """Measure the usual pipeline: shuffled tars, the same decoding, and torch's DataLoader."""
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
    return _speed((len(label) for _, label in loader), bench)


@dataclass(frozen=True)
class _WebClip:
    rows: dict[str, Sample]
    bench: LoaderBench

    def __call__(self, sample: dict[str, Any]) -> tuple[Tensor, int]:
        row = self.rows[sample["__key__"]]
        frames = _decode(row, sample["mp4"], self.bench)
        rng = sample_rng(0, 0, row.key, 0, "cut")
        clip = augment(frames, self.bench.crop, 0.5, self.bench.img_size, rng)
        return clip, row.label
