"""The page tells what is in the directory, and needs nothing beside it."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from data_prep.errors import DataError
from data_prep.options import ShardConfig
from data_prep.sealed.report import report
from data_prep.shard import shard


class _Page(HTMLParser):
    """Visible text, images and whether every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data.strip())


@pytest.fixture
def leaking(csv_config: ShardConfig, tmp_path: Path) -> ShardConfig:
    """A val clip that is a train clip under another name, a bad file, a name that is markup."""
    videos = tmp_path / "videos"
    shutil.copytree(csv_config.videos, videos)
    shutil.copy(videos / "train/000003.mp4", videos / "renamed.mp4")
    shutil.copy(videos / "train/000004.mp4", videos / "<b>&.mp4")
    (videos / "text.mp4").write_text("text")
    table = videos / "annotations.csv"
    extra = "renamed.mp4,growing,val\ntext.mp4,left,train\n<b>&.mp4,left,train\n"
    table.write_text(table.read_text() + extra)
    return csv_config.model_copy(update={"videos": videos, "annotations": table})


def test_the_page(leaking: ShardConfig) -> None:
    manifest = shard(leaking, show_progress=False)
    path = report(leaking.out)
    html = path.read_text()
    page = _Page(html)
    assert page.open == []
    assert not re.search(r"(src|href|url)\s*[=(]\s*[\"']?(?!data:)[\w./]", html)
    text = " | ".join(filter(None, page.text))
    assert manifest.digest in text
    assert "49 | clips in train" in text
    assert "17 | clips in val" in text
    assert "published copies" not in text
    assert "1 clip appears in more than one split." in text
    assert "train and val | growing | train/000003.mp4, renamed.mp4" in text
    assert "train/000004.mp4, <b>&.mp4" in text
    assert "not_video | 1 | 100.0 %" in text
    assert "32x32 | 66 | 100.0 %" in text
    assert all(name in text for name in manifest.classes)
    # Up to three clips of each of the eight classes.
    assert len(page.images) == 24
    assert all(
        (image["src"] or "").startswith("data:image/jpeg;base64,/9j/") for image in page.images
    )


def test_a_peculiarity_is_a_share_of_all_clips(csv_config: ShardConfig, tmp_path: Path) -> None:
    """A clip may have none or several, so their counts do not add up to the number of clips."""
    shard(csv_config, show_progress=False)
    record = Path(csv_config.out) / "val-000000.record.json"
    content = json.loads(record.read_text())
    content["rows"][0] |= {"rotation": 90, "hdr": True}
    record.write_text(json.dumps(content))
    text = " | ".join(filter(None, _Page(report(csv_config.out).read_text()).text))
    assert "rotated (turned upright) | 1 | 1.6 %" in text  # 1 of 64 clips
    assert "HDR (not tone-mapped) | 1 | 1.6 %" in text
    assert "32x32 | 64 | 100.0 %" in text


def test_a_kinetics_is_compared_with_the_published_copies(
    csv_config: ShardConfig, tmp_path: Path
) -> None:
    """A listing of 400 classes with a video each, of which three are there."""
    videos, table = tmp_path / "videos", tmp_path / "train.csv"
    videos.mkdir()
    rows = ["label,youtube_id,time_start,time_end,split"]
    rows += [f"class {number:03d},id{number:03d},0,10,train" for number in range(400)]
    table.write_text("\n".join(rows))
    for number in range(3):
        name = f"id{number:03d}_000000_000010.mp4"
        shutil.copy(csv_config.videos / f"train/{number:06d}.mp4", videos / name)
    changed = {"format": "kinetics", "videos": videos, "annotations": table, "max_missing": 1.0}
    config = csv_config.model_copy(update=changed)
    shard(config, show_progress=False)
    page = _Page(report(config.out).read_text())
    text = " ".join(" | ".join(filter(None, page.text)).split())
    assert "official list | 246,535 | 100.0 % | common copy | 241,258 | 97.9 %" in text
    assert "listed here | 400 | 0.2 % | in these shards | 3 | 0.0 %" in text
    assert "241,255 training videos fewer than the copy" in text
    assert "Listed but lost: 397 missing." in text
    assert page.open == []


def test_the_same_seed_gives_the_same_page(csv_config: ShardConfig, tmp_path: Path) -> None:
    assert csv_config.annotations is not None
    header, *lines = csv_config.annotations.read_text().splitlines()
    table = tmp_path / "val.csv"
    table.write_text("\n".join([header, *(line for line in lines if line.endswith("val"))]))
    changed = {"annotations": table, "clips_per_shard": 16}
    shard(csv_config.model_copy(update=changed), show_progress=False)
    first = report(csv_config.out, page=tmp_path / "a.html").read_bytes()
    assert b"in 1 shard; sources" in first
    assert report(csv_config.out, page=tmp_path / "b.html").read_bytes() == first
    assert report(csv_config.out, page=tmp_path / "c.html", seed=1).read_bytes() != first


def test_not_a_shard_directory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such directory"):
        report(str(tmp_path / "absent"))
    with pytest.raises(DataError, match="not a whole shard directory"):
        report(str(tmp_path))
    with pytest.raises(DataError, match="needs the path of the page"):
        report("memory://somewhere")
