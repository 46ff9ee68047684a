"""Counts the samples of an older shard directory that faults of its version may have harmed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import MachineTrouble
from data_prep.jobs.record import SampleRow, ShardResult, record_name
from data_prep.plan import PlannedClip
from data_prep.schema import Manifest
from data_prep.storage import Store
from data_prep.video.decode import open_video
from data_prep.video.picture import BT601_TAGS, PICTURE_VERSION
from data_prep.video.rejection import Rejection
from data_prep.workdir import Workdir

_PAST_END_S = 0.5
_HD_LINES = 720


@dataclass(frozen=True, slots=True)
class Affected:
    """A fault of the version that made the shards, and how many samples it concerns."""

    fault: str
    samples: int
    certain: bool
    """Whether these samples are wrong for certain; otherwise they may be."""

    def __str__(self) -> str:
        count = "1 sample" if self.samples == 1 else f"{self.samples} samples"
        verb = ("is" if self.samples == 1 else "are") if self.certain else "may be"
        return f"{count} {verb} affected: {self.fault}"


def picture_version(manifest: Manifest) -> int:
    return int(manifest.settings.get("picture_version", 1))


def affected(store: Store, manifest: Manifest, work: Path) -> list[Affected]:
    """List the faults, without decoding anything; empty for shards of the present version.

    The colour matrices of the sources were not recorded. They are read from the sources, as far as
    these and the plan in `work` still exist.
    """
    if picture_version(manifest) >= PICTURE_VERSION:
        return []
    colours, unknown, cut_short, reordered = 0, 0, 0, 0
    videos, clips = _planned(work)
    for row in _rows(store, manifest):
        clip = clips.get(row.key)
        matrix = _matrix(videos, clip, row)
        colours += matrix is not None and matrix not in BT601_TAGS
        unknown += matrix is None and _is_high_definition(row)
        if clip is not None and clip.trim_end_s is not None:
            wanted = clip.trim_end_s - clip.trim_start_s
            cut_short += wanted - row.duration_s > _PAST_END_S
            reordered += row.container == "avi"
    found = [
        Affected("colours of another matrix are stored as BT.601", colours, True),
        Affected(
            "sources of 720 lines and more mostly have BT.709 colours, stored as BT.601; their "
            "files are gone, so nobody can tell",
            unknown,
            False,
        ),
        Affected("their interval ends past the file, so they hold another part", cut_short, True),
        Affected("cut from AVI, where B-frames made cuts drop frames", reordered, False),
    ]
    return [item for item in found if item.samples]


def _rows(store: Store, manifest: Manifest) -> Iterator[SampleRow]:
    for entry in manifest.shards:
        try:
            content = store.read(record_name(entry.name))
            yield from ShardResult.model_validate_json(content).rows
        except (FileNotFoundError, ValueError):
            continue  # verification reports the record itself


def _planned(work: Path) -> tuple[dict[str, Path], dict[str, PlannedClip]]:
    """The video directory and the clip of every key; empty when the plan is gone."""
    workdir = Workdir(work)
    videos: dict[str, Path] = {}
    clips: dict[str, PlannedClip] = {}
    for plan in workdir.plans() if work.is_dir() else []:
        for number in range(plan.num_shards):
            for clip in workdir.shard(plan, number).clips:
                videos[clip.key], clips[clip.key] = plan.videos, clip
    return videos, clips


def _matrix(videos: dict[str, Path], clip: PlannedClip | None, row: SampleRow) -> int | None:
    """The matrix tag of the source's header; None when the source is absent or has changed."""
    if clip is None:
        return None
    path = os.path.join(videos[clip.key], clip.path)
    try:
        if os.stat(path).st_size != row.source_bytes:
            return None
        with open_video(path) as (_, stream):
            return int(stream.codec_context.colorspace)
    except (Rejection, OSError, MachineTrouble):
        return None


def _is_high_definition(row: SampleRow) -> bool:
    return row.source_height >= _HD_LINES and not row.pixel_format.startswith(("rgb", "bgr", "gbr"))
