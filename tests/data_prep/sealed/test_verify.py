"""Every kind of damage is found, and repaired to the same digest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.errors import DataError
from data_prep.options import ShardConfig
from data_prep.sealed.verify import verify
from data_prep.shard import shard


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory, synthetic: Path) -> Path:
    out = tmp_path_factory.mktemp("sealed") / "shards"
    config = ShardConfig(
        format="csv",
        videos=synthetic,
        annotations=synthetic / "annotations.csv",
        out=str(out),
        clips_per_shard=16,
    )
    shard(config, show_progress=False)
    return out


@pytest.fixture
def copy(sealed: Path, tmp_path: Path) -> Path:
    """A copy to damage. Its plan still names the first directory, so tests only inspect it."""
    return Path(shutil.copytree(sealed, tmp_path / "copy"))


def _codes(out: Path) -> set[tuple[str, str]]:
    found = verify(str(out), workers=1, show_progress=False).findings
    return {(item.file, item.code) for item in found}


def _flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_a_sound_directory_has_no_findings(sealed: Path) -> None:
    outcome = verify(str(sealed), workers=2, show_progress=False)
    assert outcome.findings == []
    assert (outcome.shards, outcome.samples) == (4, 64)


@pytest.mark.slow
def test_every_single_flipped_byte_is_found(copy: Path) -> None:
    """Headers, padding, json and video alike: at 40 places spread over the file."""
    path = copy / "train-000001.tar"
    size = path.stat().st_size
    for position in range(7, size, size // 40):
        _flip(path, position)
        assert ("train-000001.tar", "sha256") in _codes(copy), position
        _flip(path, position)
    assert _codes(copy) == set()


def _truncate(out: Path) -> None:
    path = out / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:-512])


def _truncate_hard(out: Path) -> None:
    path = out / "train-000000.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 1024 * 512])


def _delete_record(out: Path) -> None:
    (out / "train-000002.record.json").unlink()


def _delete_tar(out: Path) -> None:
    (out / "val-000000.tar").unlink()


def _swap(out: Path) -> None:
    first, second, spare = out / "train-000000.tar", out / "train-000001.tar", out / "spare"
    first.rename(spare)
    second.rename(first)
    spare.rename(second)


def _edit_record(out: Path) -> None:
    path = out / "train-000000.record.json"
    path.write_text(path.read_text().replace('"samples":16', '"samples":15'))


def _edit_manifest(out: Path) -> None:
    path = out / "manifest.json"
    content = json.loads(path.read_text())
    content["classes"][0] = "sideways"
    path.write_text(json.dumps(content))


def _flip_index(out: Path) -> None:
    _flip(out / "index.parquet", 2000)


def _truncate_index(out: Path) -> None:
    path = out / "index.parquet"
    path.write_bytes(path.read_bytes()[:-100])


def _delete_index(out: Path) -> None:
    (out / "index.parquet").unlink()


def _extra(out: Path) -> None:
    shutil.copy(out / "train-000000.tar", out / "train-000009.tar")


DAMAGE: list[tuple[Callable[[Path], None], set[tuple[str, str]]]] = [
    (_truncate, {("train-000000.tar", "size")}),
    (_truncate_hard, {("train-000000.tar", c) for c in ("size", "members", "offset")}),
    (_delete_record, {("train-000002.tar", "record_missing")}),
    (_delete_tar, {("val-000000.tar", "shard_missing")}),
    (_edit_record, {("train-000000.tar", "record_differs")}),
    (_edit_manifest, {("manifest.json", "manifest_digest")}),
    (_flip_index, {("index.parquet", "index_sha256")}),
    (_truncate_index, {("index.parquet", "index_unreadable")}),
    (_delete_index, {("index.parquet", "index_missing")}),
    (_extra, {("train-000009.tar", "extra_shard")}),
]


@pytest.mark.parametrize(("damage", "expected"), DAMAGE, ids=lambda v: getattr(v, "__name__", ""))
def test_damage_is_named(
    copy: Path, damage: Callable[[Path], None], expected: set[tuple[str, str]]
) -> None:
    damage(copy)
    assert expected <= _codes(copy)


def test_swapped_shards_are_named(copy: Path) -> None:
    _swap(copy)
    files = {file for file, _ in _codes(copy)}
    assert files == {"train-000000.tar", "train-000001.tar"}


@pytest.mark.slow
def test_fix_rebuilds_only_what_is_damaged(sealed: Path) -> None:
    """Damages the sealed directory in place, because the plan names it; the repair restores it."""
    before = {path.name: path.read_bytes() for path in sealed.glob("*") if path.is_file()}
    times = {path.name: path.stat().st_mtime_ns for path in sealed.glob("*.tar")}
    digest = verify(str(sealed), show_progress=False).digest
    for damage in (_truncate, _delete_record, _flip_index):
        damage(sealed)
    outcome = verify(str(sealed), fix=True, show_progress=False)
    assert outcome.rebuilt == ["train-000000.tar", "train-000002.tar"]
    assert (outcome.findings, outcome.digest) == ([], digest)
    for path in sealed.glob("*.tar"):
        assert path.read_bytes() == before[path.name]
        rebuilt = path.stat().st_mtime_ns != times[path.name]
        assert rebuilt == (path.name in outcome.rebuilt)


@pytest.fixture
def fixable(sealed: Path, synthetic: Path, tmp_path: Path) -> Path:
    """A copy whose plan reads a copy of the videos: `tmp_path / "videos"`."""
    videos = Path(shutil.copytree(synthetic, tmp_path / "videos"))
    out = Path(shutil.copytree(sealed, tmp_path / "fixable"))
    for header in (out / ".prep").glob("plan-*.json"):
        header.write_text(header.read_text().replace(str(synthetic), str(videos)))
    return out


def _files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def test_fix_keeps_a_damaged_shard_whose_sources_are_gone(fixable: Path, tmp_path: Path) -> None:
    _flip(fixable / "train-000001.tar", 5000)
    before = _files(fixable)
    shutil.rmtree(tmp_path / "videos/train")
    for _ in range(2):
        outcome = verify(str(fixable), fix=True, workers=1, show_progress=False)
        assert (outcome.rebuilt, outcome.samples) == ([], 64)
        assert [str(item) for item in outcome.findings if item.code == "not_rebuilt"] == [
            "train-000001.tar: not_rebuilt: 0 of 16 samples can be made again (16 missing); "
            "left as it is"
        ]
        assert _files(fixable) == before


def test_fix_keeps_a_damaged_shard_whose_sources_changed(fixable: Path, tmp_path: Path) -> None:
    _flip(fixable / "val-000000.tar", 5000)
    _delete_record(fixable)
    before = _files(fixable)
    val = tmp_path / "videos/val"
    shutil.copy(val / "000000.mp4", val / "000001.mp4")
    outcome = verify(str(fixable), fix=True, workers=1, show_progress=False)
    assert outcome.rebuilt == ["train-000002.tar"]
    (left,) = [item for item in outcome.findings if item.code == "not_rebuilt"]
    assert (left.file, "sources or the encoder changed" in left.detail) == ("val-000000.tar", True)
    after = _files(fixable)
    assert after.pop("train-000002.record.json")
    assert after == before


def test_fix_does_not_seal_another_data_set(fixable: Path) -> None:
    _flip_index(fixable)
    record = fixable / "train-000000.record.json"
    record.write_text(record.read_text().replace('"fps":8.0', '"fps":9.0', 1))
    before = _files(fixable)
    outcome = verify(str(fixable), fix=True, workers=1, show_progress=False)
    assert "not_resealed" in {item.code for item in outcome.findings}
    assert _files(fixable) == before


def test_fix_without_the_plan_is_refused(copy: Path) -> None:
    shutil.rmtree(copy / ".prep")
    _delete_record(copy)
    with pytest.raises(DataError, match=r"cannot be fixed, its plan .* is gone"):
        verify(str(copy), fix=True, show_progress=False)


def test_not_a_shard_directory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such directory"):
        verify(str(tmp_path / "absent"))
    with pytest.raises(DataError, match="not a sealed shard directory"):
        verify(str(tmp_path))
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="not a manifest"):
        verify(str(tmp_path))
