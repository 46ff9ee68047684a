"""Readers of annotations, records, plans and sidecars: a value or the package's own error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.annotation import Listing
from data_prep.datasets import read_listing
from data_prep.datasets.inputs import Inputs
from data_prep.errors import DataError
from data_prep.jobs.claims import _read_identity
from data_prep.jobs.progress import read_progress
from data_prep.jobs.record import RejectedRow, SampleRow, ShardResult, Timings, read_result
from data_prep.schema import INDEX_SCHEMA, Manifest
from data_prep.sealed.check_shard import _check_sample, _members
from data_prep.storage import open_store
from data_prep.workdir import Workdir
from tests.fuzz import BOUNDED, damaged, damaged_json, value_or_own_error

LISTINGS: dict[str, dict[str, bytes]] = {
    "csv": {"a.csv": b"path,label,split,start,end\nc/x.mp4,c,train,0,1.5\nd/y.mp4,d,val,,\n"},
    "kinetics": {
        "a.csv": b"label,youtube_id,time_start,time_end,split\nc,abcdefghijk,1,11,train\n"
        b"d,bbcdefghijk,3,13,validate\n"
    },
    "ssv2": {
        "labels.json": b'{"Push left": "0", "Push right": "1"}',
        "train.json": b'[{"id": "1", "template": "Push [left]"},\n{"id": "2", "template": "x"}]',
        "test.json": b'[{"id": "3"}]',
        "test-answers.csv": b"3;Push right\n",
    },
    "ucf101": {
        "classInd.txt": b"1 c\n2 d\n",
        "trainlist01.txt": b"c/x.avi 1\nd/y.avi 2\n",
        "testlist01.txt": b"c/z.avi\n",
    },
    "hmdb51": {"c_test_split1.txt": b"x.avi 1\ny.avi 2\nz.avi 0\n"},
}


@pytest.mark.parametrize("name", LISTINGS)
def test_annotations(tmp_path: Path, name: str) -> None:
    files = LISTINGS[name]
    videos, root = tmp_path / "videos", tmp_path / "annotations"
    videos.mkdir()
    root.mkdir()
    for file, content in files.items():
        (root / file).write_bytes(content)
    table = root if name != "csv" else root / "a.csv"

    def read() -> Listing:
        return read_listing(name, Inputs(videos, table, "train"))

    assert read().annotations

    @BOUNDED
    @given(data=st.data())
    def any_content(data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(sorted(files)))
        (root / file).write_bytes(data.draw(damaged(files[file])))
        try:
            value_or_own_error(read, DataError)
        finally:
            (root / file).write_bytes(files[file])

    any_content()


ROW: dict[str, Any] = {
    "key": "ab", "offset": 512, "size": 4, "sha256": "00", "label": 0, "frames": 3, "fps": 8.0,
    "width": 4, "height": 4, "duration_s": 1.0, "keyframes": (0,), "source": "x.mp4",
}  # fmt: skip
RECORD = ShardResult(
    name="train-000000.tar",
    split="train",
    plan="p",
    samples=1,
    bytes=4,
    sha256="00",
    rows=(
        SampleRow(
            **ROW, copied=False, container="mp4", codec="h264", pixel_format="yuv420p",
            source_width=4, source_height=4, source_bytes=4, rotation=0, sample_aspect=1.0,
            hdr=False,
        ),
    ),
    rejected=(RejectedRow(key="k", source="s", where="w", code="c", detail="d"),),
    timings=Timings(wall_s=1.0, host="h", pyav="18"),
).model_dump(mode="json")  # fmt: skip


def test_records(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), tmp_path)
    (tmp_path / "train-000000.tar").write_bytes(b"1234")
    record = tmp_path / "train-000000.record.json"
    record.write_text(json.dumps(RECORD))
    assert read_result(store, "train-000000.tar", "p") is not None

    @BOUNDED
    @given(content=damaged_json(RECORD))
    def any_content(content: bytes) -> None:
        record.write_bytes(content)
        value_or_own_error(lambda: read_result(store, "train-000000.tar", "p"), DataError)

    any_content()


def test_claims_progress_and_poison(tmp_path: Path) -> None:
    work = Workdir(tmp_path)
    report = {"started": 1.0, "updated": 2.0, "done": 1, "failed": 0, "bytes_in": 3}
    claim = {"host": "h", "pid": 1, "started": 1.0}
    poison = {"key": "k", "code": "c", "detail": "d"}
    file = tmp_path / "1.json"

    @BOUNDED
    @given(damaged_json(report), damaged_json(claim), damaged_json(poison))
    def any_content(of_report: bytes, of_claim: bytes, of_poison: bytes) -> None:
        file.write_bytes(of_report)
        read_progress(tmp_path, total=1, already=0)
        file.write_bytes(of_claim)
        assert isinstance(_read_identity(file), dict)
        (tmp_path / "poison.jsonl").write_bytes(b"\n" + json.dumps(poison).encode() + of_poison)
        assert isinstance(work.poison(), dict)

    any_content()


def test_plans(tmp_path: Path, glyph_shards: Path) -> None:
    valid = (glyph_shards / ".prep/plan-train.json").read_bytes()
    work = Workdir(tmp_path)
    (tmp_path / "plan-train.json").write_bytes(valid)
    assert work.plans()[0].split == "train"

    @BOUNDED
    @given(damaged_json(json.loads(valid)))
    def any_content(content: bytes) -> None:
        (tmp_path / "plan-train.json").write_bytes(content)
        value_or_own_error(work.plans, DataError)

    any_content()


def test_sidecars(glyph_shards: Path) -> None:
    manifest = Manifest.model_validate_json((glyph_shards / "manifest.json").read_bytes())
    row = ROW | {"split": "train", "shard": "s", "sha256": ""}
    assert set(row) == set(INDEX_SCHEMA.names)

    @BOUNDED
    @given(damaged_json({"label": 0, "frames": 3, "key": "ab"}))
    def any_content(content: bytes) -> None:
        import hashlib

        own = row | {"offset": 0, "size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
        members = {"ab.mp4": (0, 0), "ab.json": (0, len(content))}
        found = _check_sample(content, members, manifest, own)
        assert found is not None  # an empty video is none
        assert found[0] in ("json", "decode")

    any_content()


def test_tars(glyph_shards: Path) -> None:
    valid = next(glyph_shards.glob("val-*.tar")).read_bytes()[:4096]

    @BOUNDED
    @given(damaged(valid))
    def any_content(content: bytes) -> None:
        members = _members(content)
        assert members is None or isinstance(members, dict)

    any_content()
