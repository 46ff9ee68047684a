"""Real, tiny mp4 files; nothing here is mocked."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import av
import pytest
from av.video.frame import VideoFrame

from data_prep.options import ShardConfig
from data_prep.synthetic import SynthOptions, synthesize


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 train and 16 val clips with their table."""
    out = tmp_path_factory.mktemp("synthetic")
    synthesize(out, SynthOptions(clips_per_split={"train": 48, "val": 16}), workers=2)
    return out


@pytest.fixture
def csv_config(synthetic: Path, tmp_path: Path) -> ShardConfig:
    return ShardConfig(
        format="csv",
        videos=synthetic,
        annotations=synthetic / "annotations.csv",
        out=str(tmp_path / "shards"),
        dataset="glyphs",
        clips_per_shard=10,
        decoders=2,
    )


@pytest.fixture
def two_classes(real_videos: Path, tmp_path: Path) -> Path:
    """The real clips in two class folders."""
    root = tmp_path / "two_classes"
    for number, clip in enumerate(sorted(p for p in real_videos.iterdir() if p.suffix != ".md")):
        target = root / ("people", "space")[number % 2]
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, target / clip.name)
    return root


@pytest.fixture(scope="session")
def costly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seconds of work for the decoder and the encoder."""
    path = tmp_path_factory.mktemp("costly") / "costly.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        for number in range(200):
            frame = VideoFrame(1920, 1080, "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path
