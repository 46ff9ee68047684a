"""Shards of an earlier version are read, and `vmp data verify` says what is wrong with them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.errors import DataError
from data_prep.options import ShardConfig
from data_prep.sealed.verify import Verification, verify
from data_prep.shard import shard
from data_prep.workdir import Workdir
from pipeline.data.shards import open_shards
from tests.data_prep.torture_files import BT709, _write

COLOURS = "colours of another matrix are stored as BT.601"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShardConfig:
    """A table of five videos, planned as version 1 did."""
    monkeypatch.setattr("data_prep.intake.PICTURE_VERSION", 1)
    videos = tmp_path / "videos"
    videos.mkdir()
    _write(videos / "plain.mp4")
    _write(videos / "hd.mp4", size=(1280, 720), count=4, **BT709)
    _write(videos / "film.avi", container="avi", options={"bf": "3", "g": "20"})
    table = tmp_path / "table.csv"
    table.write_text("path,label,start,end\nplain.mp4,a,,\nplain.mp4,a,0.4,1.2\nhd.mp4,a,,\n")
    with table.open("a") as file:
        file.write("film.avi,a,0.2,1\n")
    return ShardConfig(
        format="csv", videos=videos, annotations=table, out=str(tmp_path / "out"), decoders=1
    )


def _verified(config: ShardConfig) -> Verification:
    found = verify(config.out, workers=1, show_progress=False)
    assert found.findings == []
    return found


def _faults(config: ShardConfig) -> dict[str, int]:
    return {item.fault: item.samples for item in _verified(config).affected}


def test_what_version_1_got_wrong_is_counted(config: ShardConfig, tmp_path: Path) -> None:
    manifest = shard(config, show_progress=False)
    assert "picture_version" not in manifest.settings
    assert len(open_shards(config.out, "train")) == 4
    found = _verified(config)
    assert found.picture_version == 1
    assert [str(item) for item in found.affected] == [
        f"1 sample is affected: {COLOURS}",
        "1 sample may be affected: cut from AVI, where B-frames made cuts drop frames",
    ]
    # A clip that was listed to end long after its file: kept cut short by version 1.
    workdir = Workdir(Path(config.out) / ".prep")
    (plan,) = workdir.plans()
    (planned,) = (workdir.shard(plan, number) for number in range(plan.num_shards))
    clips = tuple(
        replace(clip, trim_end_s=9.0) if clip.trim_start_s == 0.4 else clip
        for clip in planned.clips
    )
    workdir.save_plan(plan, [replace(planned, clips=clips)], [])
    faults = _faults(config)
    assert faults["their interval ends past the file, so they hold another part"] == 1
    shutil.rmtree(config.videos)
    assert COLOURS not in _faults(config)
    assert max(_faults(config)).startswith("their interval")
    command = [sys.executable, "-m", "pipeline.cli", "data", "verify", config.out]
    printed = subprocess.run(command, capture_output=True, text=True)
    assert printed.returncode == 0
    assert re.search(r"earlier version \(pictures 1\)\n  1 sample .*720 lines", printed.stdout)


def test_the_present_version_is_not_affected(
    config: ShardConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard(config, show_progress=False)
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"as an earlier version made it; see with `vmp data ver"):
        shard(config, show_progress=False)
    shutil.rmtree(config.out)
    assert shard(config, show_progress=False).settings["picture_version"] == 2
    assert _verified(config).affected == []
