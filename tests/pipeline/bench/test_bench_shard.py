"""The benchmark runs and its parts are consistent; no figure is asserted."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.errors import DataError
from pipeline.bench.shard import ShardBench, bench_shard


def test_a_small_run(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    report = bench_shard(ShardBench(clips=8, size=32, frames=8, cores=1, rounds=1), told.append)
    assert (report.videos, report.frames, report.cores) == (8, 64, 1)
    assert 0 < report.of_cpu < 1
    assert report.start_s > 0
    assert told[0] == "rendering 8 videos of 8 frames"
    assert [line.rpartition(" ")[0].rpartition(" ")[0] for line in told[1:]] == [
        "round 1: encode, 1 process",
        "round 1: encode, 1 processes",
        "round 1: vmp data shard",
    ]
    said = capsys.readouterr().out
    assert "vmp data shard" in said
    assert "processes start in" in said


def test_unusable_videos_are_refused(tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    (tmp_path / "class/text.mp4").write_text("text")
    with pytest.raises(DataError, match="cannot be used"):
        bench_shard(ShardBench(videos=tmp_path, cores=1, rounds=1))
