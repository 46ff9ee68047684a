"""`vmp` as a user meets it: bad input is one line and status 2, good input goes all the way."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import webdataset

from pipeline.config import read_config
from pipeline.data.shards import open_shards
from pipeline.inference.evaluate_checkpoint import evaluate_checkpoint
from pipeline.inference.export import export_weights
from tests import runs

pytestmark = pytest.mark.dist


def refused(*arguments: str) -> str:
    """The single line that `vmp ARGUMENTS` prints before it exits with status 2."""
    output = runs.run(*arguments, expect=2)
    lines = [line for line in output.splitlines() if line]
    assert len(lines) == 1, output
    assert lines[0].startswith("error: ")
    return lines[0]


def test_an_unknown_key_names_its_path_and_the_closest_match() -> None:
    assert "model.depht: did you mean 'depth'" in refused("train", "demo", "model.depht=3")


def test_an_unknown_recipe() -> None:
    assert "unknown recipe 'dmo'" in refused("submit", "dmo")


def test_no_such_shard_directory(tmp_path: Path) -> None:
    line = refused("train", *runs.overrides(tmp_path, tmp_path / "nothing", "x"))
    assert "nothing" in line


def test_a_run_directory_that_cannot_be_made(tmp_path: Path, glyph_shards: Path) -> None:
    (tmp_path / "file").write_text("")
    line = refused("train", *runs.overrides(tmp_path / "file", glyph_shards, "x"))
    assert "cannot be written" in line


def test_a_run_directory_of_another_configuration(tmp_path: Path, glyph_shards: Path) -> None:
    first = runs.overrides(tmp_path, glyph_shards, "x", schedule__max_steps=1)
    runs.run("train", *first, "launch.ranks_per_node=1")
    line = refused("train", *first, "optim.lr=0.5")
    assert "optim.lr: 0.0" in line
    assert "-> 0.5" in line


def test_a_head_that_does_not_fit_the_data(tmp_path: Path, glyph_shards: Path) -> None:
    arguments = runs.overrides(tmp_path, glyph_shards, "x")
    assert "set model.num_classes=8" in refused("submit", *arguments, "model.num_classes=5")


@pytest.mark.parametrize(
    ("format", "make", "message"),
    [
        ("folder", None, "no such directory"),
        ("csv", "path\nclip.mp4\n", "label"),
        ("nonsense", "path,label\n", "format"),
    ],
)
def test_sharding_refuses_bad_annotations(
    tmp_path: Path, format: str, make: str | None, message: str
) -> None:
    videos = tmp_path / "videos"
    arguments = ["--format", format, "--videos", str(videos), "--out", str(tmp_path / "out")]
    if make is not None:
        videos.mkdir()
        (tmp_path / "a.csv").write_text(make)
        arguments += ["--annotations", str(tmp_path / "a.csv")]
    assert message in refused("data", "shard", *arguments)


def test_evaluating_what_is_no_checkpoint(tmp_path: Path, glyph_shards: Path) -> None:
    line = refused("eval", str(tmp_path), str(glyph_shards))
    assert "neither a committed checkpoint nor a run" in line


@pytest.mark.slow
def test_the_demo_goes_the_whole_road_and_a_second_call_is_done_at_once(tmp_path: Path) -> None:
    demo = ["demo", "--root", str(tmp_path), "--train-clips", "48", "--val-clips", "16"]
    demo += ["model.preset=videomambapro-tiny-test", "model.num_classes=8"]
    demo += ["schedule.max_steps=4", "log_every_steps=1"]

    output = runs.run(*demo)

    assert "VideoMambaPro demo" in output
    assert "step 4/4, 0:00:00 left, train" in output
    assert "submitit INFO" not in output
    summary = json.loads((tmp_path / "runs/demo/summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["mlflow_run_id"]
    again = runs.run(*demo)
    assert "is finished: top-1" in again
    assert "submitted: job" not in again  # no rank was started to find that out
    assert "VideoMambaPro demo" in again


@pytest.mark.slow
def test_real_clips_in_class_folders_are_sharded_trained_on_and_evaluated(
    real_videos: Path, tmp_path: Path
) -> None:
    videos = sorted(path for path in real_videos.iterdir() if path.suffix in (".mp4", ".avi"))
    for number, path in enumerate(videos):
        folder = tmp_path / "videos" / ("even" if number % 2 == 0 else "odd")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    shards = tmp_path / "shards"
    arguments = ["--videos", str(tmp_path / "videos"), "--out", str(shards)]
    runs.run("data", "shard", "--format", "folder", *arguments)

    runs.run(
        "train",
        *("demo", "name=real", f"runs_dir={tmp_path / 'runs'}", f"data.train={shards}"),
        *("data.val_split=train", "model.num_classes=2", "schedule.max_steps=20"),
        *("batch.global_size=4", "eval.every_epochs=20"),
    )

    result = evaluate_checkpoint(tmp_path / "runs/real", shards)
    assert result.num_samples == len(videos)
    summary = json.loads((tmp_path / "runs/real/summary.json").read_text())
    assert summary["top1"] == pytest.approx(result.top1)
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(samples) == len(videos)
    assert all({"mp4", "json"} <= set(sample) for sample in samples)


@pytest.mark.slow
def test_class_folders_end_in_a_number_on_videos_that_were_held_out(
    glyph_videos: Path, tmp_path: Path
) -> None:
    """Follow README's "Your own videos" with a smaller model."""
    with (glyph_videos / "annotations.csv").open() as file:
        for row in csv.DictReader(file):
            folder = tmp_path / "videos" / row["label"]
            folder.mkdir(parents=True, exist_ok=True)
            name = row["path"].replace("/", "_")
            shutil.copy(glyph_videos / row["path"], folder / name)
    shards, mine = tmp_path / "shards", tmp_path / "runs" / "mine"
    arguments = ["--videos", str(tmp_path / "videos"), "--out", str(shards)]
    runs.run("data", "shard", "--format", "folder", *arguments, "--val-fraction", "0.25")

    said = runs.run(
        "train",
        *("finetune_cpu", "name=mine", f"data.train={shards}", f"runs_dir={mine.parent}"),
        *("model.preset=videomambapro-tiny-test", "model.embed_dim=32", "model.depth=2"),
        *("model.img_size=16", "model.patch_size=8", "schedule.epochs=1", "data.workers=0"),
    )

    held_out = open_shards(shards, "val")
    assert 0 < len(held_out) < len(open_shards(shards, "train"))
    settled = read_config(mine)
    assert settled.model.num_classes == 8
    assert settled.batch.global_size == 4  # a sixteenth of about 90 clips
    result = evaluate_checkpoint(mine, shards)
    assert result.num_samples == len(held_out)
    assert f"finished: top-1 {result.top1:.1%} of {len(held_out)} validation videos" in said
    exported = export_weights(mine, tmp_path / "mine.pth")
    assert evaluate_checkpoint(exported, shards).top1 == result.top1
