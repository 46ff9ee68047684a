"""Costs of sharding besides encoding, as the data set grows: planning, a job's start, sealing.

Listings and records are made up; everything that touches them is the real thing. Files are not
looked for and nothing is decoded: that part is `vmp bench shard`. Ten million videos take half an
hour and some 7 GB of memory.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from rich.table import Table

from data_prep.annotation import Annotation, Listing
from data_prep.jobs.job import run_shard_worker
from data_prep.jobs.pool import Caps
from data_prep.jobs.record import SampleRow, ShardResult, Timings, record_name
from data_prep.plan import PlannedClip, plan_shards
from data_prep.sealed.seal import seal
from data_prep.storage import DirectoryStore
from data_prep.video.clip import EncodeSettings
from data_prep.workdir import SplitPlan, Workdir, fingerprint

CLASSES = tuple(f"class {number:03d}" for number in range(400))


@dataclass(frozen=True, slots=True)
class PlanCost:
    """Processor seconds, and the peak of memory in GiB."""

    plan_s: float
    job_start_s: float
    """Of a job that finds nothing to do."""
    seal_s: float
    peak_gib: float


def bench_plan(sizes: Sequence[int]) -> Table:
    """A row per number of videos, each measured in a process of its own."""
    table = Table(title="processor seconds, without decoding and encoding")
    for heading in ("videos", "plan", "job start", "seal", "ms per video", "peak GiB"):
        table.add_column(heading, justify="right")
    for videos in sizes:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            cost = pool.submit(measure, videos).result()
        each = 1e3 * (cost.plan_s + cost.job_start_s + cost.seal_s) / videos
        cells = (cost.plan_s, cost.job_start_s, cost.seal_s, each, cost.peak_gib)
        table.add_row(f"{videos:,}", *(f"{value:.2f}" for value in cells))
    return table


def _plan(root: Path, videos: int) -> tuple[Workdir, SplitPlan]:
    items = [
        Annotation(f"{n % 400}/video_{n:09d}.mp4", CLASSES[n % 400], "train", where=f"list:{n}")
        for n in range(videos)
    ]
    made = plan_shards(Listing(items, [], CLASSES), dataset="bench", clips_per_shard=256)
    workdir = Workdir(root / ".prep")
    workdir.create()
    split = SplitPlan(
        split="train",
        dataset="bench",
        classes=CLASSES,
        format="csv",
        encode=EncodeSettings(),
        fold=1,
        clips_per_shard=256,
        videos=root,
        out=str(root),
        caps=Caps(),
        num_shards=len(made.shards),
        num_clips=made.num_clips,
        fingerprint=fingerprint(made.shards, {}),
    )
    workdir.save_plan(split, made.shards, [])
    return workdir, split


def _row(clip: PlannedClip, offset: int) -> SampleRow:
    return SampleRow(
        key=clip.key,
        offset=offset,
        size=600_000,
        sha256="0" * 64,
        label=clip.label,
        frames=300,
        fps=30.0,
        width=340,
        height=256,
        duration_s=10.0,
        keyframes=tuple(range(0, 300, 16)),
        source=clip.path,
        copied=False,
        container="mov",
        codec="h264",
        pixel_format="yuv420p",
        source_width=1280,
        source_height=720,
        source_bytes=2_000_000,
        rotation=0,
        sample_aspect=1.0,
        hdr=False,
    )


def _finish_all(root: Path, workdir: Workdir, split: SplitPlan) -> None:
    """Records of every shard; the tars are holes of the right size."""
    store = DirectoryStore(root)
    for number, name in enumerate(split.shard_names()):
        clips = workdir.shard(split, number).clips
        rows = tuple(_row(clip, 512 + place * 601_600) for place, clip in enumerate(clips))
        size = 602_000 * len(rows)
        result = ShardResult(
            name=name,
            split="train",
            plan=split.fingerprint,
            samples=len(rows),
            bytes=size,
            sha256="0" * 64,
            rows=rows,
            rejected=(),
            timings=Timings(wall_s=1.0, host="bench", pyav="bench"),
        )
        with (root / name).open("wb") as tar:
            tar.truncate(size)
        (root / record_name(name)).write_text(result.model_dump_json())
        assert store.size(name) == size


def measure(videos: int) -> PlanCost:
    """Plan, start a job and seal, in this process."""
    with tempfile.TemporaryDirectory(prefix="vmp-bench-") as name:
        root = Path(name)
        started = time.process_time()
        workdir, split = _plan(root, videos)
        plan_s = time.process_time() - started
        _finish_all(root, workdir, split)
        started = time.process_time()
        assert run_shard_worker(workdir.root) == 0
        job_start_s = time.process_time() - started
        started = time.process_time()
        assert seal(workdir.root).splits == {"train": videos}
        seal_s = time.process_time() - started
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return PlanCost(plan_s, job_start_s, seal_s, peak_gib)
