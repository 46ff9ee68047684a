"""`vmp bench loader` measures every contender on real shards and says what limits."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import pytest

from pipeline.bench import loader as bench
from pipeline.bench import scenes
from pipeline.commands.bench import bench_loader_command
from pipeline.data.errors import DataError
from pipeline.data.shards import open_shards

QUICK = bench.LoaderBench(
    workers=1, batch_size=2, num_frames=4, img_size=16, rounds=2, seconds=0.2, with_ffcv=False
)


@pytest.mark.slow
def test_every_contender_is_measured_in_every_round(shard_dir: Path) -> None:
    said: list[str] = []
    report = bench.bench_loader(shard_dir, QUICK, progress=said.append)
    names = [bench.ONE_CORE, "decode only, 1 processes", bench.LOADER, bench.WEBDATASET]
    assert list(report.speeds) == names
    assert len(said) == 8
    for name in names:
        assert len(report.speeds[name]) == 2
        assert all(speed.clips_per_s > 0 < speed.cpu_ms for speed in report.speeds[name])
    assert report.ratio(bench.LOADER, bench.LOADER) == 1
    text = "\n".join(report.lines())
    assert all(name in text for name in names)
    assert "limit: decoding" in text


def test_without_shards_it_renders_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[tuple[int, int, float]] = []

    def measure(
        shards: Path, options: bench.LoaderBench, *, split: str, progress: object
    ) -> bench.LoaderReport:
        found.append((len(open_shards(shards, split)), options.rounds, options.seconds))
        names = (bench.ONE_CORE, "decode only, 1 processes", bench.LOADER, bench.WEBDATASET)
        return bench.LoaderReport(QUICK, {name: [bench.Speed(1.0, 1.0)] for name in names})

    monkeypatch.setattr(bench, "bench_loader", measure)
    monkeypatch.setattr(scenes, "shard_scenes", partial(scenes.shard_scenes, frames=6))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)

    bench_loader_command(clips=8, rounds=2, seconds=0.5)

    assert found == [(8, 2, 0.5)]
    assert "clips/s" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())  # they go as they came


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that slows down to a half between the rounds changes no ratio."""
    speeds = {
        "a": [bench.Speed(40.0, 25.0), bench.Speed(20.0, 50.0)],
        "b": [bench.Speed(20.0, 50.0), bench.Speed(10.0, 100.0)],
    }
    assert bench.LoaderReport(QUICK, speeds).ratio("a", "b") == 2


def test_missing_ffcv_is_said_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise DataError("FFCV cannot be used here (no cv2)")

    monkeypatch.setattr(bench, "import_ffcv", absent)
    said: list[str] = []
    assert not bench._ffcv_is_installed(said.append)
    assert said == ["without FFCV: FFCV cannot be used here (no cv2)"]
