"""`vmp data shard` on one machine, from videos to sealed shards."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pyarrow.parquet as pq
import pytest
import webdataset

from data_prep.errors import DataError
from data_prep.options import ShardConfig
from data_prep.schema import INDEX_SCHEMA, Manifest
from data_prep.shard import shard

RUN = """
import sys
from data_prep.options import ShardConfig
from data_prep.shard import shard
shard(ShardConfig.model_validate_json(sys.argv[1]), show_progress=False)
"""


def _quarantine(out: str) -> dict[str, str]:
    """source -> reason"""
    lines = (Path(out) / "quarantine.jsonl").read_text().splitlines()
    return {row["source"]: row["code"] for row in map(json.loads, lines)}


def test_manifest_index_and_tars_agree(csv_config: ShardConfig) -> None:
    manifest = shard(csv_config, show_progress=False)
    out = Path(csv_config.out)
    assert manifest == Manifest.model_validate_json((out / "manifest.json").read_text())
    assert manifest.digest == manifest.compute_digest()
    assert manifest.splits == {"train": 48, "val": 16}
    assert len(manifest.classes) == 8
    index_bytes = (out / "index.parquet").read_bytes()
    assert hashlib.sha256(index_bytes).hexdigest() == manifest.index_sha256
    index = pq.read_table(out / "index.parquet")
    assert index.schema.equals(INDEX_SCHEMA)
    rows = index.to_pylist()
    assert len({row["key"] for row in rows}) == 64
    # Storage order: the shards of the manifest one after the other, rising offsets in each.
    names = [entry.name for entry in manifest.shards for _ in range(entry.samples)]
    assert [row["shard"] for row in rows] == names
    for entry in manifest.shards:
        tar = (out / entry.name).read_bytes()
        assert (len(tar), hashlib.sha256(tar).hexdigest()) == (entry.bytes, entry.sha256)
        ours = [row for row in rows if row["shard"] == entry.name]
        assert [row["offset"] for row in ours] == sorted(row["offset"] for row in ours)
        for row in ours:
            video = tar[row["offset"] : row["offset"] + row["size"]]
            assert hashlib.sha256(video).hexdigest() == row["sha256"]
            assert (row["frames"], row["fps"], row["keyframes"]) == (8, 8.0, [0])


def test_tars_open_with_plain_webdataset(csv_config: ShardConfig) -> None:
    manifest = shard(csv_config, show_progress=False)
    urls = [str(Path(csv_config.out) / entry.name) for entry in manifest.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(samples) == 64
    for sample in samples:
        described = json.loads(sample["json"])
        assert described["key"] == sample["__key__"]
        assert manifest.classes[described["label"]] == described["class"]
        assert hashlib.sha256(sample["mp4"]).hexdigest() == described["sha256"]


def test_labels_follow_the_table(csv_config: ShardConfig, synthetic: Path) -> None:
    manifest = shard(csv_config, show_progress=False)
    rows = (line.split(",") for line in (synthetic / "annotations.csv").read_text().split()[1:])
    expected = {path: (label, split) for path, label, split in rows}
    index = pq.read_table(Path(csv_config.out) / "index.parquet").to_pylist()
    found = {row["source"]: (manifest.classes[row["label"]], row["split"]) for row in index}
    assert found == expected


def test_second_run_does_nothing(csv_config: ShardConfig) -> None:
    shard(csv_config, show_progress=False)
    files = [p for p in Path(csv_config.out).iterdir() if p.is_file()]
    before = {p: p.stat().st_mtime_ns for p in files}
    shard(csv_config, show_progress=False)
    assert before == {p: p.stat().st_mtime_ns for p in files}


@pytest.mark.slow
def test_bytes_do_not_depend_on_jobs_or_place(csv_config: ShardConfig, tmp_path: Path) -> None:
    first = shard(csv_config, show_progress=False)
    changed = {"out": str(tmp_path / "elsewhere"), "jobs": 2, "decoders": 1}
    assert shard(csv_config.model_copy(update=changed), show_progress=False) == first


def test_splits_from_separate_calls_share_classes(csv_config: ShardConfig, tmp_path: Path) -> None:
    """Train then val into one directory is the same as both at once; a video stays in one split."""
    both = shard(csv_config, show_progress=False)
    assert csv_config.annotations is not None
    header, *lines = csv_config.annotations.read_text().split()
    out = str(tmp_path / "one_by_one")
    for name in ("train", "val"):
        table = tmp_path / f"{name}.csv"
        rows = [line for line in lines if line.endswith(name)]
        table.write_text("\n".join([header, *rows]) + "\n")
        config = csv_config.model_copy(update={"annotations": table, "out": out})
        manifest = shard(config, show_progress=False)
    assert manifest == both


def test_a_video_of_another_split_is_left_out(
    csv_config: ShardConfig, synthetic: Path, tmp_path: Path
) -> None:
    shard(csv_config, show_progress=False)
    table = tmp_path / "extra.csv"
    videos = tmp_path / "videos"
    for name in ("train/000003.mp4", "new.mp4"):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(synthetic / "train/000003.mp4", videos / name)
    table.write_text("path,label\ntrain/000003.mp4,growing\nnew.mp4,growing\n")
    changed = {"videos": videos, "annotations": table, "split": "test"}
    manifest = shard(csv_config.model_copy(update=changed), show_progress=False)
    assert manifest.splits == {"train": 48, "val": 16, "test": 1}
    assert _quarantine(csv_config.out) == {"train/000003.mp4": "in_other_split"}


def test_other_settings_in_the_same_directory_are_refused(csv_config: ShardConfig) -> None:
    shard(csv_config, show_progress=False)
    changed = {"clips_per_shard": 11}
    with pytest.raises(DataError, match="clips_per_shard 10, now 11"):
        shard(csv_config.model_copy(update=changed), show_progress=False)


def test_bad_files_go_to_the_quarantine_with_their_reason(
    csv_config: ShardConfig, synthetic: Path, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    shutil.copytree(synthetic, videos)
    (videos / "empty.mp4").write_bytes(b"")
    (videos / "text.mp4").write_text("not a video\n" * 100)
    whole = (videos / "train/000000.mp4").read_bytes()
    (videos / "half.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    table = videos / "annotations.csv"
    rows = "".join(f"{name}.mp4,left,train\n" for name in ("empty", "text", "half", "absent"))
    table.write_text(table.read_text() + rows)
    config = csv_config.model_copy(update={"videos": videos, "annotations": table})
    manifest = shard(config, show_progress=False)
    assert manifest.splits == {"train": 48, "val": 16}
    assert _quarantine(config.out) == {
        "empty.mp4": "empty",
        "text.mp4": "not_video",
        "half.mp4": "corrupt",
        "absent.mp4": "missing",
    }


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "videos/left").mkdir(parents=True)
    (tmp_path / "videos/left/a.mp4").write_text("text")
    config = ShardConfig(format="folder", videos=tmp_path / "videos", out=str(tmp_path / "out"))
    with pytest.raises(DataError, match="no input could be used \\(1 not_video\\)"):
        shard(config, show_progress=False)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "empty; expected the columns path,label"),
        ("path,class\na.mp4,left\n", "column 'label' is missing; found \\['path', 'class'\\]"),
        ("a.mp4,left\n", "no header; add a first line path,label"),
        ("path,label\n", "names no video"),
        ("path,label\nabsent.mp4,left\n", "1 missing.*table.csv:2: missing, no file absent.mp4"),
        ("path,label\ntrain/000000.mp4,left,extra\n", "names no video.*3 cells"),
    ],
)
def test_bad_tables_are_bad_input(
    csv_config: ShardConfig, tmp_path: Path, table: str, message: str
) -> None:
    path = tmp_path / "table.csv"
    path.write_text(table)
    with pytest.raises(DataError, match=message):
        shard(csv_config.model_copy(update={"annotations": path}), show_progress=False)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"videos": Path("/nowhere")}, "--videos /nowhere: no such directory"),
        ({"annotations": Path("/nowhere.csv")}, "--annotations /nowhere.csv: no such file"),
        ({"annotations": None}, "--annotations is missing"),
        ({"format": "cvs"}, "--format cvs: unknown; one of .*csv"),
        ({"out": "/proc/shards"}, "--out /proc/shards: cannot be used"),
        ({"out": "memory://shards"}, "also needs --work"),
        ({"out": "no-such-protocol://x", "work": Path("work")}, "cannot be used"),
    ],
)
def test_bad_options_are_bad_input(
    csv_config: ShardConfig,
    changed: dict[str, object],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        shard(csv_config.model_copy(update=changed), show_progress=False)


def test_output_below_a_file_is_bad_input(csv_config: ShardConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    changed = {"out": str(tmp_path / "file/out")}
    with pytest.raises(DataError, match="cannot be used"):
        shard(csv_config.model_copy(update=changed), show_progress=False)


def test_real_clips_as_a_folder(two_classes: Path, tmp_path: Path) -> None:
    config = ShardConfig(format="folder", videos=two_classes, out=str(tmp_path / "out"))
    manifest = shard(config, show_progress=False)
    assert manifest.classes == ("people", "space")
    assert _quarantine(config.out) == {}
    rows = {
        Path(r["source"]).name: r for r in pq.read_table(tmp_path / "out/index.parquet").to_pylist()
    }
    assert {name: row["frames"] for name, row in rows.items()} == {
        "arm_wrestling.mp4": 280,
        "nasa_13013.mp4": 390,
        "nasa_13013_rotated.mp4": 17,
        "skeleton_demo.mp4": 72,
        "spatiotemporal_demo.mp4": 57,
        "structuralize.mp4": 300,
        "test.avi": 164,
    }
    turned = rows["nasa_13013_rotated.mp4"]
    assert (turned["width"], turned["height"]) == (256, 454)
    for row in rows.values():
        assert min(row["width"], row["height"]) <= 256
        with (tmp_path / "out" / row["shard"]).open("rb") as tar:
            tar.seek(row["offset"])
            clip = tmp_path / "clip.mp4"
            clip.write_bytes(tar.read(row["size"]))
        with av.open(str(clip)) as container:
            assert [s.type for s in container.streams] == ["video"]
            frames = list(container.decode(video=0))
        assert len(frames) == row["frames"]
        assert [i for i, f in enumerate(frames) if f.key_frame] == row["keyframes"]
        assert row["keyframes"] == list(range(0, row["frames"], 16))
        assert frames[0].pts == 0


def test_sigkill_in_the_middle_then_the_same_manifest(
    csv_config: ShardConfig, tmp_path: Path
) -> None:
    undisturbed = shard(csv_config, show_progress=False)
    config = csv_config.model_copy(update={"out": str(tmp_path / "killed")})
    process = subprocess.Popen([sys.executable, "-c", RUN, config.model_dump_json()])
    out = Path(config.out)
    while not list(out.glob("*.record.json")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    assert shard(config, show_progress=False) == undisturbed
    leftovers = [name for name in os.listdir(out) if name.endswith(".tmp")]
    assert leftovers == []


def test_the_seal_removes_what_killed_writers_left(csv_config: ShardConfig) -> None:
    out = Path(csv_config.out)
    out.mkdir()
    left = ["train-000000.record.json.1d3986ea3a3f", "train-000001.tar.0", "index.parquet.0badcafe"]
    for name in left:
        (out / f".{name}.tmp").write_bytes(b"half")
    (out / ".notes.of-mine.tmp").write_bytes(b"not ours")

    shard(csv_config, show_progress=False)

    assert [path.name for path in out.glob(".*.tmp")] == [".notes.of-mine.tmp"]
