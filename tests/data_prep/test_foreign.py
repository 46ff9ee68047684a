"""Shards written by others: tars without a seal, and seals whose names lead elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from data_prep.errors import DataError as PrepError
from data_prep.options import ShardConfig
from data_prep.sealed.report import report
from data_prep.sealed.verify import verify
from data_prep.shard import shard
from pipeline.data import DataError
from pipeline.data.shards import open_shards

ADVICE = "index them with `vmp data adopt`"


def test_tars_of_other_tools_say_what_to_do(tmp_path: Path) -> None:
    """Tars and statistics without a manifest, as video2dataset lays them out."""
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        tar.add(__file__, "000000000.mp4")
    (tmp_path / "00000_stats.json").write_text("{}")
    for act in (verify, report):
        with pytest.raises(PrepError, match=ADVICE) as refused:
            act(str(tmp_path))
        assert "\n" not in str(refused.value)
    with pytest.raises(DataError, match=ADVICE):
        open_shards(tmp_path)
    config = ShardConfig(format="folder", videos=tmp_path, out=str(tmp_path / "out"))
    with pytest.raises(PrepError, match=r"names no video.*holds tars, for which there is"):
        shard(config, show_progress=False)


@pytest.mark.parametrize(
    "name",
    ["../../victim/.bashrc", "/etc/passwd", "a/b.tar", "..", "", ".tar", "x.tar\n", "x\0.tar", "x"],
)
def test_names_of_shards_cannot_lead_elsewhere(tmp_path: Path, name: str) -> None:
    """The writer of the manifest chose these names, and sealed it properly."""
    record = {"name": name, "split": "train", "samples": 1, "bytes": 1, "sha256": "0" * 64}
    content: dict[str, object] = {"dataset": "d", "classes": ["a"], "splits": {"train": 1}}
    content |= {"settings": {}, "index_sha256": "0" * 64}
    (tmp_path / "manifest.json").write_text(json.dumps(content | {"shards": [record]}))
    with pytest.raises(DataError, match=r"not a manifest \(shards.0.name"):
        open_shards(tmp_path)
    with pytest.raises(PrepError, match="not a manifest"):
        verify(str(tmp_path))


@pytest.mark.parametrize("field", ["digest", "index_sha256"])
def test_digests_are_digests(tmp_path: Path, field: str) -> None:
    """Digests name directories of caches and appear in the report."""
    content = {"dataset": "d", "classes": ["a"], "splits": {}, "settings": {}, "shards": []}
    content |= {"index_sha256": "0" * 64, field: "<script>alert(1)</script>"}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    for act in (open_shards, lambda path: report(str(path))):
        with pytest.raises((DataError, PrepError), match=r"manifest|Manifest"):
            act(tmp_path)


HOSTILE = "a\x1b]0;owned\x07\x1b[31m\u202e\u2028<img src=x onerror=alert(1)>"


@pytest.mark.slow
def test_labels_and_names_reach_neither_terminal_nor_page_as_commands(
    csv_config: ShardConfig, tmp_path: Path
) -> None:
    """Escape sequences of a terminal, a line end and a turn of Unicode, markup."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("good", HOSTILE.replace("/", "")):
        (videos / f"{name}.mp4").write_bytes((csv_config.videos / "val/000000.mp4").read_bytes())
    table = tmp_path / "table.csv"
    table.write_text(f"path,label\ngood.mp4,{HOSTILE}\n{HOSTILE}.mp4,{HOSTILE}\n{HOSTILE},b\n")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "pipeline.cli", "data"]
    options = f"shard --format csv --videos {videos} --annotations {table} --out {out}".split()
    refused = subprocess.run([*command, *options], capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.rstrip("\n").isprintable()
    assert r"\x1b" in refused.stderr
    options += ["--max-missing", "0.5"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[1:]) == (
        0,
        ["left out: 1 missing; each with its reason in quarantine.jsonl"],
    )
    (out / "train-000000.tar").write_bytes(b"")
    found = subprocess.run([*command, "verify", str(out)], capture_output=True, text=True)
    assert found.returncode == 1
    assert all(line.isprintable() for line in found.stdout.split("\n"))
    assert (out / "quarantine.jsonl").read_text().isascii()


def test_the_page_shows_markup_as_text(csv_config: ShardConfig, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(f"path,label,split\nval/000000.mp4,{HOSTILE},train\n")
    changed = {"annotations": table, "dataset": HOSTILE}
    shard(csv_config.model_copy(update=changed), show_progress=False)
    html = report(csv_config.out).read_text()
    assert "onerror=alert(1)" in html
    assert "<img src=x" not in html
