"""`vmp bench shard`: the rate of `vmp data shard` next to what the cores can encode.

The peer is the same decoding and encoding in plain processes that keep nothing: they have no tars,
hashes, claims or restarts. Rounds alternate, so that a busy machine slows both; the median counts.
Processor time per video is given too. It shows what sharding adds, and is the figure to read when
other work shares the machine.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table

from data_prep.annotation import VIDEO_SUFFIXES
from data_prep.errors import DataError
from data_prep.jobs.pool import ClipPool
from data_prep.options import ShardConfig
from data_prep.shard import shard
from data_prep.synthetic import SynthOptions, synthesize
from data_prep.video.clip import ClipRequest, RejectedClip
from data_prep.video.prepare import prepare_clip
from pipeline.terminal import table_console


class ShardBench(BaseModel):
    """Options of the measurement."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    videos: Path | None = None
    """Directory of `<class>/<file>`; None = render letters."""
    clips: int = Field(default=128, ge=8)
    """Number of clips to render."""
    size: int = Field(default=256, ge=32, multiple_of=2)
    frames: int = Field(default=96, ge=2)
    cores: int | None = Field(default=None, ge=1)
    rounds: int = Field(default=3, ge=1)


@dataclass(frozen=True, slots=True)
class Rate:
    """Rate of a round, or the medians over the rounds."""

    videos_per_s: float
    cpu_s: float
    """Processor seconds per video over all processes."""


@dataclass(frozen=True, slots=True)
class ShardReport:
    cores: int
    videos: int
    frames: int
    one_core: Rate
    all_cores: Rate
    """Rate of plain processes, one per core, that run at the same time."""
    sharding: Rate
    """Rate of sharding, from the call to the sealed manifest, process starts included."""
    start_s: float
    """Seconds of sharding until the decoding processes take their first video."""

    @property
    def of_cores(self) -> float:
        """Rate of sharding relative to the number of cores times the rate of one core."""
        return self.sharding.videos_per_s / (self.cores * self.one_core.videos_per_s)

    @property
    def of_plain(self) -> float:
        return self.sharding.videos_per_s / self.all_cores.videos_per_s

    @property
    def of_cpu(self) -> float:
        """Fraction of sharding's processor time that decoding and encoding take."""
        return self.one_core.cpu_s / self.sharding.cpu_s

    def table(self) -> Table:
        mean = self.frames / self.videos
        title = f"{self.videos} videos of {mean:.0f} frames, {self.cores} cores"
        table = Table(title=title)
        table.add_column("", no_wrap=True)
        for name in ("videos/s", "frames/s", "of cores", "of plain", "CPU s"):
            table.add_column(name, justify="right")
        for name, rate in (
            ("encode, 1 process", self.one_core),
            (f"encode, {self.cores} processes", self.all_cores),
            ("vmp data shard", self.sharding),
        ):
            table.add_row(
                name,
                f"{rate.videos_per_s:.2f}",
                f"{rate.videos_per_s * mean:.0f}",
                f"{rate.videos_per_s / (self.cores * self.one_core.videos_per_s):.2f}",
                f"{rate.videos_per_s / self.all_cores.videos_per_s:.2f}",
                f"{rate.cpu_s:.3f}",
            )
        return table


def bench_shard(
    options: ShardBench, progress: Callable[[str], object] = lambda _: None
) -> ShardReport:
    """Measure and print a table; `progress` receives a line per measurement.

    Raises DataError when there is no video or a video cannot be used.
    """
    cores = options.cores or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="vmp-bench-") as name:
        scratch = Path(name)
        if options.videos is None:
            progress(f"rendering {options.clips} videos of {options.frames} frames")
        config = _config(options, scratch, cores)
        count, frames = len(_requests(config)), 0
        if not count:
            raise DataError(f"--videos {config.videos}: holds no video; expected <class>/<file>")
        one: list[Rate] = []
        all_: list[Rate] = []
        sharding: list[Rate] = []
        for number in range(1, options.rounds + 1):
            rate, frames = _plain(config, 1)
            one.append(rate)
            progress(f"round {number}: encode, 1 process {rate.videos_per_s:.2f} videos/s")
            all_.append(_plain(config, cores)[0])
            progress(
                f"round {number}: encode, {cores} processes {all_[-1].videos_per_s:.2f} videos/s"
            )
            sharding.append(_shard(config, count))
            progress(f"round {number}: vmp data shard {sharding[-1].videos_per_s:.2f} videos/s")
        start_s = _start_s(config, cores)
    report = ShardReport(
        cores, count, frames, _median(one), _median(all_), _median(sharding), start_s
    )
    console = table_console()
    console.print(report.table())
    console.print(
        f"{report.of_cores:.2f} of cores x one core ('of cores'); {report.of_cpu:.2f} of the "
        "processor time ('CPU s', per video) is decoding and encoding; processes start in "
        f"{report.start_s:.2f} s, once per job"
    )
    return report


def _median(rates: Sequence[Rate]) -> Rate:
    return Rate(
        statistics.median(rate.videos_per_s for rate in rates),
        statistics.median(rate.cpu_s for rate in rates),
    )


def _config(options: ShardBench, scratch: Path, cores: int) -> ShardConfig:
    out = str(scratch / "shards")
    common: dict[str, Any] = {"out": out, "clips_per_shard": 16, "decoders": cores}
    if options.videos is not None:
        if not options.videos.is_dir():
            raise DataError(f"--videos {options.videos}: no such directory")
        return ShardConfig(format="folder", videos=options.videos, max_missing=0.0, **common)
    videos = scratch / "videos"
    annotations = _render_letters(videos, options)
    return ShardConfig(format="csv", videos=videos, annotations=annotations, **common)


def _render_letters(videos: Path, options: ShardBench) -> Path:
    """Moving letters, as many and as large as asked for; returns their annotations."""
    synth = SynthOptions(
        clips_per_split={"train": options.clips},
        size=options.size,
        frames=options.frames,
        growth=1.0 + 1.28 / options.frames,
        speed_min=8.4 / options.frames,
        speed_max=17.5 / options.frames,
        fps=25.0,
        crf=18,
    )
    return synthesize(videos, synth)


def _requests(config: ShardConfig) -> list[ClipRequest]:
    paths = sorted(p for p in config.videos.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
    return [ClipRequest(str(path), 0.0, None, config.encode) for path in paths]


def _plain(config: ShardConfig, processes: int) -> tuple[Rate, int]:
    """Measure processes that start together and share the files: their rate and frame count."""
    requests = _requests(config)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes + 1)
    results = context.SimpleQueue()
    workers = [
        context.Process(target=_encode_all, args=(requests[i::processes], barrier, results))
        for i in range(processes)
    ]
    for worker in workers:
        worker.start()
    barrier.wait()
    started = time.perf_counter()
    answers: list[tuple[int, float] | None] = [results.get() for _ in workers]
    elapsed = time.perf_counter() - started
    for worker in workers:
        worker.join()
    if None in answers:
        raise DataError(f"{config.videos}: holds a video that cannot be used; run vmp data shard")
    frames, cpu_s = (sum(parts) for parts in zip(*filter(None, answers), strict=True))
    return Rate(len(requests) / elapsed, cpu_s / len(requests)), int(frames)


def _encode_all(requests: Sequence[ClipRequest], barrier: Any, results: Any) -> None:
    """Encode all clips and put (frames, processor seconds), or None if a video was rejected."""
    av.logging.set_level(av.logging.PANIC)
    barrier.wait()
    started = time.process_time()
    frames = 0
    for request in requests:
        clip = prepare_clip(request)
        if isinstance(clip, RejectedClip):
            results.put(None)
            return
        frames += clip.frames
    results.put((frames, time.process_time() - started))


def _shard(config: ShardConfig, count: int) -> Rate:
    shutil.rmtree(config.out, ignore_errors=True)
    started, cpu_started = time.perf_counter(), _cpu_s()
    manifest = shard(config, show_progress=False)
    elapsed = time.perf_counter() - started
    assert sum(manifest.splits.values()) == count
    return Rate(count / elapsed, (_cpu_s() - cpu_started) / count)


def _start_s(config: ShardConfig, processes: int) -> float:
    """Measure the seconds until every decoding process has answered a first, empty request."""
    nothing = ClipRequest(str(config.videos / "no such video"), 0.0, None, config.encode)
    started = time.perf_counter()
    with ClipPool[None](processes, config.caps) as pool:
        list(pool.map([(None, nothing)] * processes))
        return time.perf_counter() - started


def _cpu_s() -> float:
    """Return the processor seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
