"""Costs of sharding besides encoding, as the data set grows: planning, a job's start, sealing.

python benchmarks/shard_plan.py                 # 1 thousand to 1 million videos
python benchmarks/shard_plan.py 10000000        # takes half an hour and some 7 GB of memory

Listings and records are synthetic, and the real code processes them. No file is looked for and
nothing is decoded; `vmp bench shard` measures that part.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from rich.console import Console
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


def plan(root: Path, videos: int) -> tuple[Workdir, SplitPlan]:
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


def row(clip: PlannedClip, offset: int) -> SampleRow:
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


def finish_all(root: Path, workdir: Workdir, split: SplitPlan) -> None:
    """Records of every shard; the tars are holes of the right size."""
    store = DirectoryStore(root)
    for number, name in enumerate(split.shard_names()):
        clips = workdir.shard(split, number).clips
        rows = tuple(row(clip, 512 + place * 601_600) for place, clip in enumerate(clips))
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


def measure(videos: int, answer: Connection) -> None:
    """Send processor seconds of plan, a job that finds nothing to do, and seal, with peak GiB."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        marks = [time.process_time()]
        workdir, split = plan(root, videos)
        marks.append(time.process_time())
        planned = marks[1] - marks[0]
        finish_all(root, workdir, split)
        started = time.process_time()
        assert run_shard_worker(workdir.root) == 0
        resumed = time.process_time() - started
        started = time.process_time()
        assert seal(workdir.root).splits == {"train": videos}
        sealed = time.process_time() - started
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    answer.send((planned, resumed, sealed, peak_gib))


def main() -> None:
    sizes = [int(argument) for argument in sys.argv[1:]] or [1_000, 10_000, 100_000, 1_000_000]
    table = Table(title="processor seconds, without decoding and encoding")
    for heading in ("videos", "plan", "job start", "seal", "ms per video", "peak GiB"):
        table.add_column(heading, justify="right")
    context = multiprocessing.get_context("spawn")
    for videos in sizes:
        ours, theirs = context.Pipe()
        process = context.Process(target=measure, args=(videos, theirs))
        process.start()
        planned, resumed, sealed, peak_gib = ours.recv()
        process.join()
        each = 1e3 * (planned + resumed + sealed) / videos
        cells = [f"{value:.2f}" for value in (planned, resumed, sealed, each, peak_gib)]
        table.add_row(f"{videos:,}", *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
