"""The benchmark runs and its parts are consistent; its figures are for people."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.errors import DataError
from pipeline.bench.shard import ShardBench, bench_shard


def test_a_small_run(capsys: pytest.CaptureFixture[str]) -> None:
    report = bench_shard(ShardBench(clips=8, size=32, frames=8, cores=1, rounds=1))
    assert (report.videos, report.frames, report.cores) == (8, 64, 1)
    assert 0 < report.of_cpu < 1
    assert report.start_s > 0
    said = capsys.readouterr().out
    assert "vmp data shard" in said
    assert "processes start in" in said


def test_unusable_videos_are_refused(tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    (tmp_path / "class/text.mp4").write_text("text")
    with pytest.raises(DataError, match="cannot be used"):
        bench_shard(ShardBench(videos=tmp_path, cores=1, rounds=1))
