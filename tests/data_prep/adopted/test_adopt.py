"""Tars of other tools are indexed in place, or refused with the reason per sample."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import webdataset
from av.video.frame import VideoFrame
from typer.testing import CliRunner

from data_prep.adopted.adopt import AdoptConfig, adopt
from data_prep.adopted.labels import read_classes
from data_prep.errors import DataError
from data_prep.schema import MANIFEST_NAME, QUARANTINE_NAME, Manifest, is_member_name
from data_prep.sealed.report import report
from data_prep.sealed.verify import verify
from data_prep.video.read import read_pictures
from pipeline.cli import app
from pipeline.data import DataConfig
from pipeline.data.loader import build_eval_loader, build_train_loader
from pipeline.data.shards import Shards, open_shards

Sample = dict[str, Any]


def video(seed: int, frames: int = 12, *, matrix: int = 1, b_frames: int = 2) -> bytes:
    """An mp4 as found in the wild: BT.709, B-frames, one keyframe, 480x270."""
    file = io.BytesIO()
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (9 + frames, 16, 3), dtype=np.uint8)
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(30000, 1001))
        stream.width, stream.height, stream.pix_fmt = 480, 270, "yuv420p"
        stream.options = {"bf": str(b_frames), "preset": "ultrafast", "g": "250"}
        stream.codec_context.colorspace = matrix
        for number in range(frames):
            pixels = blocks[number : number + 9].repeat(30, 0).repeat(30, 1)
            frame = VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


VIDEOS = [video(seed) for seed in range(6)]
NAMES = ("jump", "run", "sit")


def write(path: Path, samples: Sequence[Sample]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), mtime=0) as tar:
        for sample in samples:
            tar.write(sample)
    return path


def raw(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """A tar with any names, which webdataset's writer would not make."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def config(source: Path, **fields: Any) -> AdoptConfig:
    return AdoptConfig(source=source, decoders=1, **fields)


def left_out(directory: Path) -> dict[str, str]:
    lines = map(json.loads, (directory / QUARANTINE_NAME).read_text().splitlines())
    return {line["source"]: line["code"] for line in lines}


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars as video2dataset writes them: mp4, a caption as txt, and json."""
    root = tmp_path_factory.mktemp("downloaded")
    for shard in range(2):
        samples = [
            {
                "__key__": f"{shard:05d}{number:04d}",
                "mp4": VIDEOS[3 * shard + number],
                "txt": f"a caption about video {3 * shard + number}",
                "json": {"url": "https://example.org", "meta": {"class": NAMES[number]}},
            }
            for number in range(3)
        ]
        write(root / f"{shard:05d}.tar", samples)
        (root / f"{shard:05d}_stats.json").write_text("{}")
    return root


@pytest.fixture(scope="module")
def adopted(downloaded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tars, indexed elsewhere as two splits."""
    out = tmp_path_factory.mktemp("adopted") / "shards"
    for split, name in (("train", "00000.tar"), ("val", "00001.tar")):
        options = {"out": out, "split": split, "label_key": "meta.class"}
        adopt(config(downloaded / name, **options), show_progress=False)
    return out


def test_the_tars_stay_where_they_are_and_the_seal_holds(downloaded: Path, adopted: Path) -> None:
    manifest = Manifest.model_validate_json((adopted / MANIFEST_NAME).read_text())
    assert (manifest.classes, manifest.splits) == (NAMES, {"train": 3, "val": 3})
    assert manifest.dataset == "shards"
    assert manifest.adopted
    assert (adopted / "val-000000.tar").resolve() == (downloaded / "00001.tar").resolve()
    assert (adopted / "val-000000.tar").is_symlink()
    found = verify(str(adopted), workers=1, show_progress=False)
    assert (found.findings, found.samples, found.shards) == ([], 6, 2)
    assert (downloaded / "00000.tar").read_bytes().count(VIDEOS[0]) == 1


def test_readers_give_the_bytes_that_webdataset_gives(downloaded: Path, adopted: Path) -> None:
    shards = open_shards(adopted)
    ours = [shards.read(number) for number in range(len(shards))]
    tars = [str(path) for path in sorted(downloaded.glob("*.tar"))]
    theirs = webdataset.WebDataset(tars, shardshuffle=False)
    assert ours == [sample["mp4"] for sample in theirs] == VIDEOS
    assert shards.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_training_sees_the_picture_that_sharding_would_store(adopted: Path, tmp_path: Path) -> None:
    """Upright, at most 256 high and BT.601, as `vmp predict` makes it of the loose file."""
    shards = open_shards(adopted, "train")
    loose = tmp_path / "loose.mp4"
    loose.write_bytes(VIDEOS[0])
    pictures = list(read_pictures(str(loose)))
    assert pictures[0].shape == (256, 454, 3)
    sample = shards.samples([0])[0]
    assert sample.frames == len(pictures) == 12
    data = DataConfig(train=adopted, workers=0, sampling="dense", stride=1)
    with build_train_loader(
        shards, data, img_size=32, num_frames=4, seed=0, global_batch=2, micro_batch=1
    ) as loader:
        maker = loader.source._maker  # type: ignore[attr-defined]
        wanted = np.array([11, 3, 3, 0])
        frames = maker.decode(sample, wanted)
        batches = [next(loader) for _ in range(2)]
    assert np.array_equal(frames, np.stack([pictures[number] for number in wanted]))
    assert [batch.weight.tolist() for batch in batches] == [[1.0], [1.0]]
    keys = shards.keys(shards.order(0, 0)[:2])
    assert [batch.keys for batch in batches] == [[keys[0]], [keys[1]]]


def test_evaluation_and_the_report_show_them(adopted: Path, tmp_path: Path) -> None:
    shards = open_shards(adopted, "val")
    data = DataConfig(train=adopted, workers=0, decoder="torchcodec")
    loader = build_eval_loader(shards, data, img_size=32, num_frames=4, batch_size=3)
    (batch,) = iter(loader)
    assert batch.weight.tolist() == [1.0, 1.0, 1.0]
    page = report(str(adopted), page=tmp_path / "report.html").read_text()
    assert "kept byte for byte" in page
    assert "copies that were encoded anew are not found" in page
    assert page.count("data:image/jpeg;base64,") == 6


def test_cls_numbers_take_names_from_a_file_and_txt_are_names(tmp_path: Path) -> None:
    numbered = [{"__key__": f"{i}", "mp4": VIDEOS[i], "cls": i} for i in range(2)]
    tars = write(tmp_path / "a" / "00000.tar", numbered).parent
    assert adopt(config(tars), show_progress=False).classes == ("0", "1")
    names = tmp_path / "classes.txt"
    names.write_text("walk\nrun\nsit\n\n")
    classes = read_classes(names)
    manifest = adopt(config(tars, classes=classes), show_progress=False)
    assert manifest.classes == ("walk", "run", "sit")
    assert open_shards(tars).labels.tolist() == [0, 1]

    named = [{"__key__": f"{i}", "mp4": VIDEOS[i], "txt": NAMES[1 - i]} for i in range(2)]
    tars = write(tmp_path / "b" / "00000.tar", named).parent
    assert adopt(config(tars), show_progress=False).classes == ("jump", "run")
    assert open_shards(tars).labels.tolist() == [1, 0]


def test_captioned_tars_without_labels_become_the_split_test(
    downloaded: Path, tmp_path: Path
) -> None:
    options = {"out": tmp_path / "out", "unlabelled": True}
    with pytest.raises(DataError, match="only the split 'test' may lack labels"):
        adopt(config(downloaded, **options), show_progress=False)
    manifest = adopt(config(downloaded, split="test", **options), show_progress=False)
    assert (manifest.classes, manifest.splits) == ((), {"test": 6})
    assert open_shards(tmp_path / "out").labels.tolist() == [-1] * 6


def test_every_unusable_sample_is_listed_with_its_reason(tmp_path: Path) -> None:
    good, cls = VIDEOS[0], b"1"
    members = [
        ("good.mp4", good), ("good.cls", cls),
        ("dir/also.mp4", VIDEOS[1]), ("dir/also.cls", b"0"),
        ("interleaved.mp4", VIDEOS[2]), ("x.cls", cls), ("interleaved.cls", b" 1\n"),
        ("x.mp4", VIDEOS[3]),
        ("./dotted.mp4", VIDEOS[4]), ("./dotted.cls", cls),
        ("._good.mp4", b"a resource fork"), ("notes.md", b"no sample"),
        ("no label.mp4", good),
        ("lonely.cls", cls),
        ("many.mp4", good), ("many.webm", good), ("many.cls", cls),
        ("../../etc/evil.mp4", good), ("../../etc/evil.cls", cls),
        ("/abs.mp4", good), ("/abs.cls", cls),
        ("esc\x1b[2J.mp4", good), ("esc\x1b[2J.cls", cls),
        ("v1.0.mp4", good), ("v1.cls", cls),
        ("text.mp4", b"<html>404</html>"), ("text.cls", cls),
        ("empty.mp4", b""), ("empty.cls", cls),
        ("half.mp4", good[: len(good) // 2]), ("half.cls", cls),
        ("short.mp4", video(9, frames=1)), ("short.cls", cls),
        ("ninth.mp4", good), ("ninth.cls", b"9"),
        ("bytes.mp4", good), ("bytes.cls", b"\xff"),
    ]  # fmt: skip
    tar = raw(tmp_path / "t.tar", members)
    with tarfile.open(tar, "a") as file:
        link = tarfile.TarInfo("link.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    options = {"classes": ("a", "b")}
    with pytest.raises(DataError, match=r"15 of 20 samples are unusable.*--max-missing 0\.1"):
        adopt(config(tmp_path, **options), show_progress=False)
    assert not (tmp_path / MANIFEST_NAME).exists()
    expected = {
        "no label.mp4": "no_label",
        "lonely": "unpaired",
        "many.mp4": "malformed",
        "../../etc/evil": "bad_name",
        "/abs": "bad_name",
        "esc\x1b[2J": "bad_name",
        "v1.0.mp4": "bad_name",
        "v1": "unpaired",
        "text.mp4": "not_video",
        "empty.mp4": "empty",
        "half.mp4": "not_video",
        "short.mp4": "too_short",
        "ninth.mp4": "unknown_class",
        "bytes.mp4": "no_label",
        "link": "not_file",
    }
    listed = {name.partition("/")[2]: code for name, code in left_out(tmp_path).items()}
    listed["many.mp4"] = listed.pop("many")
    assert listed == expected
    manifest = adopt(config(tmp_path, max_missing=0.8, **options), show_progress=False)
    assert manifest.splits == {"train": 5}
    assert verify(str(tmp_path), workers=1, show_progress=False).findings == []


def test_names_of_members_are_plain() -> None:
    good = ("a.mp4", "dir/b.mp4", "ünï 視頻.mp4", "-x.mp4")
    bad = ("", "/a", "a//b", "../a", "a/../b", ".", "a/.", "a\\b", "a\nb", "a\u202eb", "a\udcff")
    assert [name for name in (*good, *bad) if is_member_name(name)] == list(good)


def cut_at_a_block(content: bytes) -> bytes:
    return content[: len(content) // 2 // 512 * 512]


def broken_header(content: bytes) -> bytes:
    place = content.index(b"000000001.mp4")
    return content[:place] + b"\1" * 512 + content[place + 512 :]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut_at_a_block, "damaged tar"),
        (broken_header, "damaged tar"),
        (lambda content: content[:700], "damaged tar"),
        (lambda content: content + content, "something follows its end mark"),
        (lambda content: b"\x1f\x8b" + content, "not an uncompressed tar"),
        (lambda content: b"", "not an uncompressed tar"),
    ],
)
def test_a_damaged_tar_is_refused_as_a_whole(
    downloaded: Path, tmp_path: Path, damage: Any, reason: str
) -> None:
    """`tarfile` and webdataset read most of these without a word, and samples would be lost."""
    tar = tmp_path / "00000.tar"
    tar.write_bytes(damage((downloaded / "00000.tar").read_bytes()))
    with pytest.raises(DataError, match=reason) as refused:
        adopt(config(tmp_path, label_key="meta.class"), show_progress=False)
    assert "\n" not in str(refused.value)
    assert sorted(os.listdir(tmp_path)) == [".prep", "00000.tar"]


def test_changes_after_the_seal_are_found(tmp_path: Path) -> None:
    samples = [{"__key__": f"{i}", "mp4": VIDEOS[i], "cls": i} for i in range(2)]
    tar = write(tmp_path / "tars" / "00000.tar", samples)
    out = tmp_path / "out"
    adopt(config(tar.parent, out=out), show_progress=False)
    content = bytearray(tar.read_bytes())
    content[content.index(VIDEOS[1]) + len(VIDEOS[1]) // 2] ^= 1
    tar.write_bytes(content)
    found = verify(str(out), workers=1, show_progress=False).findings
    assert Counter(finding.code for finding in found) == {"sha256": 1, "video_sha256": 1}
    with pytest.raises(DataError, match="adopted tars cannot be rebuilt"):
        verify(str(out), fix=True, workers=1, show_progress=False)
    tar.unlink()
    assert "shard_missing" in {
        finding.code for finding in verify(str(out), workers=1, show_progress=False).findings
    }


def test_a_second_call_decodes_nothing_again(
    downloaded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"out": tmp_path / "out", "label_key": "meta.class"}
    first = adopt(config(downloaded, **options), show_progress=False)

    def pool(*_: object) -> Iterator[object]:
        raise AssertionError("a process was started")

    monkeypatch.setattr("data_prep.adopted.adopt.ClipPool", pool)
    assert adopt(config(downloaded, **options), show_progress=False) == first


def test_bad_input_is_one_line(downloaded: Path, adopted: Path, tmp_path: Path) -> None:
    def refusal(source: Path, **fields: Any) -> str:
        with pytest.raises(DataError) as refused:
            adopt(config(source, **fields), show_progress=False)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    assert "no such file" in refusal(tmp_path / "absent")
    assert "no .tar file" in refusal(tmp_path)
    (tmp_path / "0.tar.gz").write_bytes(b"")
    assert "only compressed tars" in refusal(tmp_path)
    assert "no sample in these tars" in refusal(raw(tmp_path / "none" / "a.tar", []))
    odd = write(tmp_path / "odd" / "a.b.tar", [{"__key__": "a", "mp4": VIDEOS[0], "cls": 0}])
    assert "give --out DIR" in refusal(odd.parent)
    key = {"label_key": "meta.class"}
    assert "belongs to split 'train'" in refusal(adopted, split="test", **key)
    other = {"out": adopted, "split": "test", "classes": ("x",), **key}
    assert "other names or another order" in refusal(downloaded / "00000.tar", **other)
    names = tmp_path / "names"
    names.write_text("a\n\nb\n")
    with pytest.raises(DataError, match="names:2: an empty line"):
        read_classes(names)


def test_captions_are_not_taken_for_classes(tmp_path: Path) -> None:
    members = [
        (f"{i}.{suffix}", content)
        for i in range(101)
        for suffix, content in (("mp4", b"x"), ("txt", f"caption {i}".encode()))
    ]
    tar = raw(tmp_path / "t.tar", members)
    with pytest.raises(DataError, match="101 different labels in 101 samples look like captions"):
        adopt(config(tar), show_progress=False)


def test_what_a_killed_call_left_is_removed_and_an_unusable_tar_stays(tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    write(tars / "0.tar", [{"__key__": "a", "mp4": VIDEOS[0], "cls": 0}])
    raw(tars / "1.tar", [("b.mp4", b"no video"), ("b.cls", b"0")])
    (tars / ".manifest.json.0123456789abcdef.tmp").write_text("half")
    manifest = adopt(config(tars, max_missing=0.5), show_progress=False)
    assert [record.name for record in manifest.shards] == ["0.tar"]
    assert verify(str(tars), workers=1, show_progress=False).findings == []
    assert not list(tars.glob(".*.tmp"))


def test_the_command(downloaded: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--out", str(out), "--label-key", "meta.class", "--decoders", "1"]
    ran = CliRunner().invoke(app, ["data", "adopt", str(downloaded), *options])
    assert ran.exit_code == 0, ran.output
    assert f"{out}: 3 classes; samples: train 6" in ran.output
    assert isinstance(open_shards(out), Shards)
