"""Listings and layouts that must be mistakes are refused, or named line by line."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_prep.annotation import Annotation, Listing
from data_prep.datasets import read_listing
from data_prep.datasets.holdout import with_validation_split
from data_prep.datasets.inputs import Inputs
from data_prep.datasets.presence import present
from data_prep.datasets.splits import known_split, looks_like_split
from data_prep.errors import DataError, MachineTrouble
from data_prep.options import ShardConfig
from data_prep.shard import shard


def _touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def _read(name: str, root: Path, table: str | None = None, split: str = "train") -> Listing:
    path = None
    if table is not None:
        path = root / "table.csv"
        path.write_text(table)
    inputs = Inputs(root / "videos", path, split)
    return present(read_listing(name, inputs), inputs)


def _codes(listing: Listing) -> list[tuple[str, str]]:
    return [(problem.where.rpartition(":")[2], problem.code) for problem in listing.problems]


def _short(listing: Listing) -> list[tuple[str, str | None, str]]:
    return [(item.path, item.label, item.split) for item in listing.annotations]


@pytest.mark.parametrize(
    "times", ["-1,5", "nan,5", "1,nan", "1,inf", "-inf,1", "5,5", "5,1", "1e300,", "0,1e9", "x,1"]
)
def test_times_that_are_no_interval(tmp_path: Path, times: str) -> None:
    _touch(tmp_path, "x.mp4", "id.mp4")
    start, end = times.split(",")
    rows = f"path,label,start,end\nx.mp4,a,0,1\nx.mp4,a,{times}\n"
    assert ("3", "malformed") in _codes(_read("csv", tmp_path, rows))
    rows = "label,youtube_id,time_start,time_end,split\na,id,0,1,train\n"
    rows += f"a,id,{start},{end or '1e300'},train\n"
    assert ("3", "malformed") in _codes(_read("kinetics", tmp_path, rows))


def test_one_file_is_in_one_split_under_all_its_names(tmp_path: Path) -> None:
    _touch(tmp_path, "sub/x.mp4")
    os.symlink("sub/x.mp4", tmp_path / "videos/link.mp4")
    os.symlink("sub", tmp_path / "videos/alias")
    names = ["sub/x.mp4", "./sub/x.mp4", "sub//x.mp4", "sub/../sub/x.mp4", "link.mp4"]
    names += ["alias/x.mp4", str(tmp_path / "videos/sub/x.mp4")]
    rows = "".join(f"{name},a,{'val' if name != names[0] else 'train'}\n" for name in names)
    listing = _read("csv", tmp_path, "path,label,split\n" + rows)
    assert _short(listing) == [("sub/x.mp4", "a", "train")]
    assert _codes(listing) == [(str(line), "in_other_split") for line in range(3, 9)]


def test_spellings_of_one_path_give_one_clip(tmp_path: Path) -> None:
    _touch(tmp_path, "sub/x.mp4")
    absolute = tmp_path / "videos/sub/x.mp4"
    rows = f"path,label\n./sub/x.mp4,a\nsub/./x.mp4,a\n{absolute},a\n"
    listing = _read("csv", tmp_path, rows)
    assert {item.path for item in listing.annotations} == {"sub/x.mp4"}


def test_accents_have_one_form(tmp_path: Path) -> None:
    composed, split = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    _touch(tmp_path, f"{split}/{split}.mp4", f"{composed}/b.mp4")
    listing = _read("csv", tmp_path, f"path,label\n{composed}/{composed}.mp4,{split}\n")
    assert listing.classes == (composed,)
    assert _short(listing) == [(f"{split}/{split}.mp4", composed, "train")]
    assert _read("folder", tmp_path).classes == (composed,)


def test_names_of_splits(tmp_path: Path) -> None:
    known = {"Train": "train", "TRAINING": "train", "Valid": "val", "validation": "val"}
    known |= {"test_set": "test", "train-videos": "train", "TestData": "test"}
    known |= {"videos_train": "train", "rawframes-Val": "val", "trainlist": "train"}
    assert {name: known_split(name) for name in known} == known
    for name in ("train2", "dev", "val_256", "trainval", "trainlist01", "Annotations"):
        assert (known_split(name), looks_like_split(name)) == (None, True)
    classes = ("clip_test", "image train", "pretrain", "screen test", "set_val", "2 test")
    for name in (*classes, "training_dogs", "test tube", "trains", "valley", "contest", ""):
        assert (known_split(name), looks_like_split(name)) == (None, False)
    _touch(tmp_path, "id_1_11.mp4", "id_2_12.mp4", "id_3_13.mp4")
    rows = "label,youtube_id,time_start,time_end,split\n"
    rows += "a,id,1,11,Val\na,id,2,12,holdout\na,id,3,13,\n"
    listing = _read("kinetics", tmp_path, rows)
    assert _short(listing) == [("id_1_11.mp4", "a", "val"), ("id_3_13.mp4", "a", "train")]
    assert _codes(listing) == [("3", "malformed"), ("id_2_12.mp4", "outside")]
    rows = "path,label,split\nid_1_11.mp4,a,Validation\nid_2_12.mp4,a,holdout\n"
    listing = _read("csv", tmp_path, rows)
    assert [item.split for item in listing.annotations] == ["val", "holdout"]


@pytest.mark.parametrize(
    ("format", "table", "message"),
    [
        ("csv", "path,label,split,Label\nx.mp4,a,train,b\n", "column 'label' is there twice"),
        ("csv", "path,label,time_start\nx.mp4,a,1\n", "column 'time_start': call it 'start'"),
        (
            "kinetics",
            "label,youtube_id,time_start,time_end,label\na,id,1,11,b\n",
            "column 'label' is there twice",
        ),
    ],
)
def test_columns_are_there_once(tmp_path: Path, format: str, table: str, message: str) -> None:
    _touch(tmp_path, "x.mp4")
    with pytest.raises(DataError, match=message):
        _read(format, tmp_path, table)


def test_json_and_class_lists_name_everything_once(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "labels.json").write_text('{"a": "0", "a": "1"}')
    (tmp_path / "classInd.txt").write_text("1 a\n1 b\n")
    for name, message in (("ssv2", "'a' is there twice"), ("ucf101", "is there twice: '1 b")):
        with pytest.raises(DataError, match=message):
            read_listing(name, Inputs(tmp_path / "videos", tmp_path, "train"))


def test_directories_beside_splits(tmp_path: Path) -> None:
    _touch(tmp_path, "Train/cat/a.mp4", "Val/cat/b.mp4", "annotations/list.json")
    listing = _read("folder", tmp_path)
    assert listing.classes == ("cat",)
    assert _short(listing) == [("Train/cat/a.mp4", "cat", "train"), ("Val/cat/b.mp4", "cat", "val")]


def test_a_class_may_have_a_split_in_its_name(tmp_path: Path) -> None:
    _touch(tmp_path, "clip_test/a.mp4", "running/b.mp4")
    assert _read("folder", tmp_path).classes == ("clip_test", "running")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["train/cat/a.mp4", "extra/b.mp4"],
            "'train' looks like a split",
        ),
        (["train1/cat/a.mp4", "val/cat/b.mp4"], "'train1' looks like a split; rename it"),
        (["cat/train/a.mp4", "cat/val/b.mp4"], r"'cat/train/a.mp4' lies in 'train'.*--format csv"),
        (["data/Train/cat/a.mp4"], "point --videos at the directory that holds the splits"),
    ],
)
def test_layouts_that_are_not_clear(tmp_path: Path, files: list[str], message: str) -> None:
    _touch(tmp_path, *files)
    with pytest.raises(DataError, match=message):
        _read("folder", tmp_path)


def test_every_video_is_listed_somewhere(tmp_path: Path) -> None:
    _touch(tmp_path, "loose.mp4", "a/y.mp4", "a/.hidden.mp4", ".trash/old.mp4", "notes.txt")
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "z.mp4").write_text("z")
    os.symlink(outside, tmp_path / "videos/a/linked")
    os.symlink(tmp_path / "videos", tmp_path / "videos/a/loop")
    listing = _read("folder", tmp_path)
    assert [item.path for item in listing.annotations] == ["a/y.mp4", "a/linked/z.mp4"]
    left = {problem.path: problem.code for problem in listing.problems}
    assert left == dict.fromkeys(("loose.mp4", "a/.hidden.mp4", ".trash/old.mp4"), "outside")
    listing = _read("csv", tmp_path, "path,label\na/y.mp4,a\n")
    assert {p.path for p in listing.problems} == {*left, "a/linked/z.mp4"}


def test_a_directory_that_may_not_be_read_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions do not bind root, so the refusal is simulated."""
    _touch(tmp_path, "a/y.mp4", "closed/x.mp4")
    scan = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    listing = _read("folder", tmp_path)
    assert [(p.path, p.code) for p in listing.problems] == [("closed", "unreadable")]


def test_a_stale_file_system_stops_instead_of_missing_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _touch(tmp_path, "x.mp4")
    state = os.stat

    def stale(path: object, **options: bool) -> os.stat_result:
        if str(path).endswith("x.mp4"):
            raise OSError(116, "Stale file handle")
        return state(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("data_prep.datasets.presence.os.stat", stale)
    with pytest.raises(MachineTrouble, match="Stale file handle"):
        _read("csv", tmp_path, "path,label\nx.mp4,a\n")


def test_a_validation_split_by_video(tmp_path: Path) -> None:
    def listing(count: int) -> Listing:
        rows = [
            Annotation(f"v/{number}.mp4", "a", "train", trim_start_s=start)
            for number in range(count)
            for start in (0.0, 5.0)
        ]
        return Listing(rows, [], ("a",))

    def held_out(count: int) -> list[str]:
        split = with_validation_split(listing(count), 0.2)
        return [item.path for item in split.annotations if item.split == "val"]

    few, many = held_out(100), held_out(1000)
    assert 300 <= len(many) <= 500
    assert many[: len(few)] == few, "others that come do not move a video"
    assert many[::2] == many[1::2], "both clips of a video go together"
    with pytest.raises(DataError, match="no split val; found train, val"):
        with_validation_split(with_validation_split(listing(100), 0.2), 0.2)
    with pytest.raises(DataError, match="would hold out 0 of 2 clips"):
        with_validation_split(listing(1), 0.001)


def test_losses_while_decoding_count(csv_config: ShardConfig, tmp_path: Path) -> None:
    """Four of twelve are broken and refused until the bound allows them; nothing is made twice."""
    videos = tmp_path / "videos"
    videos.mkdir()
    rows = []
    for number in range(12):
        source = csv_config.videos / f"train/{number:06d}.mp4"
        content = source.read_bytes()
        (videos / f"{number}.mp4").write_bytes(content if number > 3 else content[:900])
        rows.append(f"{number}.mp4,a\n")
    table = tmp_path / "table.csv"
    table.write_text("path,label\n" + "".join(rows))
    changed = {"videos": videos, "annotations": table}
    config = csv_config.model_copy(update=changed)
    message = r"4 of 12 clips were lost \(4 \w+\), more than --max-missing 0.1, so nothing"
    with pytest.raises(DataError, match=message):
        shard(config, show_progress=False)
    out = Path(config.out)
    assert not (out / "manifest.json").exists()
    assert len((out / "quarantine.jsonl").read_text().splitlines()) == 4
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    allowed = config.model_copy(update={"max_missing": 0.4})
    assert shard(allowed, show_progress=False).splits == {"train": 8}
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}


def test_val_fraction_and_outside_through_the_whole_of_sharding(
    csv_config: ShardConfig, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    (videos / "a").mkdir(parents=True)
    for number in range(10):
        source = csv_config.videos / f"train/{number:06d}.mp4"
        (videos / f"a/{number}.mp4").write_bytes(source.read_bytes())
    (videos / "loose.mp4").write_bytes(source.read_bytes())
    config = ShardConfig(
        format="folder", videos=videos, out=str(tmp_path / "out"), val_fraction=0.3, decoders=1
    )
    manifest = shard(config, show_progress=False)
    assert sum(manifest.splits.values()) == 10
    assert 1 <= manifest.splits["val"] <= 6
    rows = pq.read_table(tmp_path / "out/index.parquet").to_pylist()
    assert {row["split"] for row in rows} == {"train", "val"}
    lines = (tmp_path / "out/quarantine.jsonl").read_text().splitlines()
    assert [(row["source"], row["code"]) for row in map(json.loads, lines)] == [
        ("loose.mp4", "outside")
    ]
