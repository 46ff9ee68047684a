"""Rendered videos for benchmarks, of the size and length of real ones."""

from __future__ import annotations

from pathlib import Path

from data_prep.options import ShardConfig
from data_prep.shard import shard
from data_prep.synthetic import SynthOptions, synthesize


def render_letters(scratch: Path, clips: int, *, size: int = 256, frames: int = 96) -> Path:
    """Render moving letters under `scratch/videos` and return the file of their annotations."""
    synth = SynthOptions(
        clips_per_split={"train": clips},
        size=size,
        frames=frames,
        growth=1.0 + 1.28 / frames,
        speed_min=8.4 / frames,
        speed_max=17.5 / frames,
        fps=25.0,
        crf=18,
    )
    return synthesize(scratch / "videos", synth)


def shard_letters(scratch: Path, clips: int, *, size: int = 256, frames: int = 96) -> Path:
    """Render moving letters and return a shard directory of them, with the split train."""
    out = scratch / "shards"
    annotations = render_letters(scratch, clips, size=size, frames=frames)
    shard(
        ShardConfig(
            format="csv",
            annotations=annotations,
            videos=scratch / "videos",
            out=str(out),
            clips_per_shard=16,
        ),
        show_progress=False,
    )
    return out
