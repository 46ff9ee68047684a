"""Real, tiny mp4 files; nothing here is mocked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

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
