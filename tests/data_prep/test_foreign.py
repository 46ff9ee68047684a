"""What others wrote: tars without a seal, and seals whose names lead elsewhere."""

from __future__ import annotations

import json
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

ADVICE = "unpack them and run `vmp data shard --format csv`"


def test_tars_of_other_tools_say_what_to_do(tmp_path: Path) -> None:
    """As video2dataset lays them out: tars and statistics, no manifest."""
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
    with pytest.raises(PrepError, match=r"names no video.*holds tars: unpack them first"):
        shard(config, show_progress=False)


@pytest.mark.parametrize(
    "name",
    ["../../victim/.bashrc", "/etc/passwd", "a/b.tar", "..", "", ".tar", "x.tar\n", "x\0.tar", "x"],
)
def test_names_of_shards_cannot_lead_elsewhere(tmp_path: Path, name: str) -> None:
    """Whoever wrote the manifest chose them, and sealed it properly."""
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
    """They name directories of caches, and stand in the page of the report."""
    content = {"dataset": "d", "classes": ["a"], "splits": {}, "settings": {}, "shards": []}
    content |= {"index_sha256": "0" * 64, field: "<script>alert(1)</script>"}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    for act in (open_shards, lambda path: report(str(path))):
        with pytest.raises((DataError, PrepError), match=r"manifest|Manifest"):
            act(tmp_path)
