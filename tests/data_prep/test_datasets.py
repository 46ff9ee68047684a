"""Annotation formats, each over a small copy of its official layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.annotation import Annotation, Listing
from data_prep.datasets import read_listing
from data_prep.datasets.inputs import Inputs
from data_prep.errors import DataError


def _read(name: str, root: Path, annotations: str | None, fold: int = 1) -> Listing:
    table = None if annotations is None else root / annotations
    return read_listing(name, Inputs(root / "videos", table, "train", fold))


def _touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _short(items: list[Annotation]) -> list[tuple[str, str | None, str]]:
    return [(item.path, item.label, item.split) for item in items]


def test_csv_quotes_trims_and_lines(tmp_path: Path) -> None:
    _touch(tmp_path, "a.mp4")
    (tmp_path / "t.csv").write_text(
        "label,path,start,end,split\n"
        'b,"with, comma.mp4",,,val\n'
        "a,a.mp4,1.5,3,\n"
        "a,,1,2,train\n"
        "a,b.mp4,x,2,train\n"
    )
    listing = _read("csv", tmp_path, "t.csv")
    assert listing.classes == ("a", "b")
    assert _short(listing.annotations) == [
        ("with, comma.mp4", "b", "val"),
        ("a.mp4", "a", "train"),
    ]
    assert listing.annotations[1].trim_start_s == 1.5
    assert listing.annotations[1].trim_end_s == 3
    table = tmp_path / "t.csv"
    assert [(p.where, p.code) for p in listing.problems] == [
        (f"{table}:4", "malformed"),
        (f"{table}:5", "malformed"),
    ]


def test_integer_labels_are_the_numbers_of_their_classes(tmp_path: Path) -> None:
    _touch(tmp_path, "a.mp4", "09/b.mp4", "10/c.mp4")
    (tmp_path / "t.csv").write_text("path,label\na,10\nb,9\nc,0\n")
    assert _read("csv", tmp_path, "t.csv").classes == tuple(map(str, range(11)))
    assert _read("folder", tmp_path, None).classes == (*map(str, range(9)), "09", "10")
    for labels, message in (("7,07", "are one number"), ("-1,2", "cannot number classes")):
        rows = "".join(f"a.mp4,{label}\n" for label in labels.split(","))
        (tmp_path / "t.csv").write_text("path,label\n" + rows)
        with pytest.raises(DataError, match=message):
            _read("csv", tmp_path, "t.csv")


def test_split_names_must_be_able_to_name_files(tmp_path: Path) -> None:
    _touch(tmp_path, "a.mp4")
    rows = "".join(f"a.mp4,a,{split}\n" for split in ("val_2-b", "../../evil", "a b"))
    (tmp_path / "t.csv").write_text("path,label,split\n" + rows)
    listing = _read("csv", tmp_path, "t.csv")
    assert [item.split for item in listing.annotations] == ["val_2-b"]
    table = tmp_path / "t.csv"
    assert [(problem.where, problem.code) for problem in listing.problems] == [
        (f"{table}:3", "malformed"),
        (f"{table}:4", "malformed"),
    ]
    with pytest.raises(DataError, match=r"--split \.\./x: may only hold letters"):
        read_listing("csv", Inputs(tmp_path / "videos", table, "../x"))


def test_folder_with_and_without_splits(tmp_path: Path) -> None:
    _touch(tmp_path, "cat/a.mp4", "cat/more/b.MP4", "dog/c.jpg", "dog/notes.txt", "dog/.hidden")
    listing = _read("folder", tmp_path, None)
    assert _short(listing.annotations) == [
        ("cat/a.mp4", "cat", "train"),
        ("cat/more/b.MP4", "cat", "train"),
        ("dog/c.jpg", "dog", "train"),
    ]
    assert [(p.path, p.code) for p in listing.problems] == [("dog/notes.txt", "unknown_suffix")]
    other = tmp_path / "split"
    _touch(other, "train/cat/a.mp4", "val/dog/b.mp4")
    listing = _read("folder", other, None)
    assert listing.classes == ("cat", "dog")
    assert _short(listing.annotations) == [
        ("train/cat/a.mp4", "cat", "train"),
        ("val/dog/b.mp4", "dog", "val"),
    ]


def test_kinetics_names_and_trims(tmp_path: Path) -> None:
    _touch(
        tmp_path,
        "train/riding_a_bike/AAA_000010_000020.mp4",
        "BBB_5_15.mkv",
        "CCC.mp4",
        "other class/-D_000001_000011.mp4",
        "riding a bike/-D_000001_000011.mp4",
    )
    table = tmp_path / "train.csv"
    table.write_text(
        "label,youtube_id,time_start,time_end,split\n"
        '"riding a bike",AAA,10,20,train\n'
        "abseiling,BBB,5,15,train\n"
        "abseiling,CCC,30,40,validate\n"
        "riding a bike,-D,1,11,train\n"
        "abseiling,EEE,0,10,train\n"
        "abseiling,FFF,ten,20,train\n"
        "abseiling,GGG,20,10,train\n"
        "abseiling,HHH\n"
    )
    listing = _read("kinetics", tmp_path, "train.csv")
    assert listing.classes == ("abseiling", "riding a bike")
    assert _short(listing.annotations) == [
        ("train/riding_a_bike/AAA_000010_000020.mp4", "riding a bike", "train"),
        ("BBB_5_15.mkv", "abseiling", "train"),
        ("CCC.mp4", "abseiling", "val"),
        ("riding a bike/-D_000001_000011.mp4", "riding a bike", "train"),
        ("EEE_000000_000010.mp4", "abseiling", "train"),
    ]
    trims = [(a.trim_start_s, a.trim_end_s) for a in listing.annotations]
    assert trims == [(0, None), (0, None), (30, 40), (0, None), (0, None)]
    assert [p.where for p in listing.problems] == [f"{table}:{line}" for line in (7, 8, 9)]


def test_kinetics_directory_and_unlabelled_test(tmp_path: Path) -> None:
    _touch(tmp_path, "a_0_10.mp4")
    (tmp_path / "lists").mkdir()
    header = "youtube_id,time_start,time_end,split\n"
    (tmp_path / "lists/test.csv").write_text(header + "a,0,10,test\n")
    (tmp_path / "lists/train.csv").write_text(f"label,{header}x,b,0,10,train\n")
    listing = _read("kinetics", tmp_path, "lists")
    assert _short(listing.annotations) == [
        ("a_0_10.mp4", None, "test"),
        ("b_000000_000010.mp4", "x", "train"),
    ]


def _write_ssv2(root: Path) -> None:
    _touch(root, "1.webm", "2.webm", "3.mp4")
    lists = root / "lists"
    lists.mkdir()
    labels = {"Pushing something": "1", "Holding something": "0"}
    (lists / "something-something-v2-labels.json").write_text(json.dumps(labels))
    train = [
        {"id": "1", "label": "holding cup", "template": "Holding [something]"},
        {"id": "9", "label": "pushing cup", "template": "Pushing [something]"},
        {"label": "no id"},
    ]
    (lists / "something-something-v2-train.json").write_text(json.dumps(train, indent=1))
    (lists / "something-something-v2-test.json").write_text('[{"id": "2"}, {"id": "3"}]')


def test_ssv2_templates_numbering_and_lines(tmp_path: Path) -> None:
    _write_ssv2(tmp_path)
    listing = _read("ssv2", tmp_path, "lists")
    assert listing.classes == ("Holding something", "Pushing something")
    assert _short(listing.annotations) == [
        ("1.webm", "Holding something", "train"),
        ("9.webm", "Pushing something", "train"),
        ("2.webm", None, "test"),
        ("3.mp4", None, "test"),
    ]
    train = tmp_path / "lists/something-something-v2-train.json"
    assert [a.where for a in listing.annotations[:2]] == [f"{train}:2", f"{train}:7"]
    assert [(p.where, p.code) for p in listing.problems] == [(f"{train}:12", "malformed")]
    (tmp_path / "lists/test-answers.csv").write_text("2;Pushing something\n3;Holding something\n")
    labels = [item.label for item in _read("ssv2", tmp_path, "lists").annotations[2:]]
    assert labels == ["Pushing something", "Holding something"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.json", "[1]", "expected"),
        ("labels.json", '{"a": "0", "b": "2"}', "the numbers are not 0 to 1"),
        ("labels.json", "{", r"labels.json:1: not JSON"),
        ("train.json", '[{"id": 1},\n{"id": ', r"train.json:2: not JSON"),
        ("train.json", '{"id": 1}', "expected a JSON list"),
        ("train.json", "[", "not JSON"),
    ],
)
def test_ssv2_broken_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    _write_ssv2(tmp_path)
    (tmp_path / f"lists/something-something-v2-{name}").write_text(content)
    with pytest.raises(DataError, match=message):
        _read("ssv2", tmp_path, "lists")


def test_ucf101_folds_and_numbers(tmp_path: Path) -> None:
    _touch(tmp_path, "Dive/v_1.avi")
    (tmp_path / "classInd.txt").write_text("1 Dive\r\n2 Archery\r\n")
    (tmp_path / "trainlist02.txt").write_text("Dive/v_1.avi 1\nArchery/v_2.avi 1\nnothing\n")
    (tmp_path / "testlist02.txt").write_text("Archery/v_3.avi\n")
    listing = _read("ucf101", tmp_path, ".", fold=2)
    assert listing.classes == ("Dive", "Archery")
    assert _short(listing.annotations) == [
        ("Dive/v_1.avi", "Dive", "train"),
        ("Archery/v_3.avi", "Archery", "val"),
    ]
    assert [p.where for p in listing.problems] == [
        f"{tmp_path}/trainlist02.txt:2",
        f"{tmp_path}/trainlist02.txt:3",
    ]
    with pytest.raises(DataError, match=r"trainlist01.txt is missing"):
        _read("ucf101", tmp_path, ".", fold=1)


def test_hmdb51_uses(tmp_path: Path) -> None:
    _touch(tmp_path, "wave/a.avi")
    (tmp_path / "wave_test_split1.txt").write_text("a b.avi 1 \nc.avi 2 \nd.avi 0 \ne.avi 7\n")
    (tmp_path / "run_test_split1.txt").write_text("r.avi 1 \n")
    (tmp_path / "run_test_split2.txt").write_text("r.avi 2 \n")
    listing = _read("hmdb51", tmp_path, ".")
    assert listing.classes == ("run", "wave")
    assert _short(listing.annotations) == [
        ("run/r.avi", "run", "train"),
        ("wave/a b.avi", "wave", "train"),
        ("wave/c.avi", "wave", "val"),
    ]
    assert [p.where for p in listing.problems] == [f"{tmp_path}/wave_test_split1.txt:4"]
    with pytest.raises(DataError, match=r"no file called <class>_test_split3.txt"):
        _read("hmdb51", tmp_path, ".", fold=3)


@pytest.mark.parametrize("name", ["kinetics", "ssv2", "ucf101", "hmdb51"])
def test_annotations_are_required(tmp_path: Path, name: str) -> None:
    (tmp_path / "videos").mkdir()
    with pytest.raises(DataError, match="--annotations is missing"):
        _read(name, tmp_path, None)
    with pytest.raises(DataError, match="no such file"):
        _read(name, tmp_path, "absent")
    (tmp_path / "lists").mkdir()
    with pytest.raises(DataError, match="--annotations"):
        _read(name, tmp_path, "lists")
