"""Checks one shard against its manifest entry, its rows of the index and its record."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from data_prep.adopted.check import check_adopted
from data_prep.jobs.record import ShardResult, record_name
from data_prep.schema import Manifest, ShardRecord
from data_prep.storage import DirectoryStore, Store, open_store
from data_prep.video.picture import is_stored_picture


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference from what was sealed."""

    file: str
    code: str
    detail: str
    key: str = ""

    def __str__(self) -> str:
        sample = f" sample {self.key}" if self.key else ""
        return f"{self.file}:{sample} {self.code}: {self.detail}"


Row = dict[str, Any]


def check_shard(out: str, manifest: Manifest, entry: ShardRecord, rows: list[Row]) -> list[Finding]:
    """Check one tar and return all findings; `rows` are its rows of the index."""
    av.logging.set_level(av.logging.PANIC)
    store = open_store(out, Path())
    findings = list(_check_record(store, entry))
    if len(rows) != entry.samples:
        detail = f"{len(rows)} in the index, {entry.samples} in the manifest"
        findings.append(Finding(entry.name, "sample_count", detail))
    if manifest.adopted and isinstance(store, DirectoryStore):
        faults = check_adopted(store, manifest, entry, rows)
        return findings + [Finding(entry.name, code, text, key) for code, text, key in faults]
    try:
        content = store.read(entry.name)
    except FileNotFoundError:
        return [*findings, Finding(entry.name, "shard_missing", "no such file")]
    if len(content) != entry.bytes:
        detail = f"{len(content)} bytes, {entry.bytes} were sealed"
        findings.append(Finding(entry.name, "size", detail))
    elif hashlib.sha256(content).hexdigest() != entry.sha256:
        findings.append(Finding(entry.name, "sha256", "its bytes are not those that were sealed"))
    members = _members(content)
    expected = {f"{row['key']}.{kind}" for row in rows for kind in ("mp4", "json")}
    if members is None or set(members) != expected or len(members) != 2 * len(rows):
        findings.append(Finding(entry.name, "members", "its files are not those of the index"))
    for row in rows:
        problem = _check_sample(content, members or {}, manifest, row)
        if problem is not None:
            findings.append(Finding(entry.name, *problem, key=row["key"]))
    return findings


def _check_record(store: Store, entry: ShardRecord) -> Iterator[Finding]:
    name = record_name(entry.name)
    try:
        result = ShardResult.model_validate_json(store.read(name))
    except FileNotFoundError:
        yield Finding(entry.name, "record_missing", f"no {name}")
        return
    except ValueError:
        yield Finding(entry.name, "record_unreadable", f"{name} is damaged")
        return
    sealed = (entry.name, entry.split, entry.samples, entry.bytes, entry.sha256)
    if (result.name, result.split, result.samples, result.bytes, result.sha256) != sealed:
        yield Finding(entry.name, "record_differs", f"{name} describes other bytes")


def _members(content: bytes) -> dict[str, tuple[int, int]] | None:
    """The (offset, size) of each member by name; None when the tar cannot be read to its end."""
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            members = {item.name: (item.offset_data, item.size) for item in tar}
    except tarfile.TarError:
        return None
    return members


def _check_sample(
    content: bytes, members: dict[str, tuple[int, int]], manifest: Manifest, row: Row
) -> tuple[str, str] | None:
    """The (code, detail) of the first fault of a sample; None for a sound one."""
    video = content[row["offset"] : row["offset"] + row["size"]]
    if members.get(f"{row['key']}.mp4") != (row["offset"], row["size"]):
        return "offset", "the index and the header of the tar disagree on its place"
    if hashlib.sha256(video).hexdigest() != row["sha256"]:
        return "video_sha256", "the video's bytes are not those of the index"
    if not -1 <= row["label"] < len(manifest.classes):
        return "label", f"{row['label']} of {len(manifest.classes)} classes"
    start, size = members.get(f"{row['key']}.json", (0, 0))
    try:
        described = json.loads(content[start : start + size])
    except (ValueError, RecursionError):
        described = None
    if not isinstance(described, dict):
        return "json", "unreadable"
    shared = described.keys() & row.keys()
    differing = sorted(name for name in shared if described[name] != row[name])
    if differing or not shared:
        return "json", f"differs from the index in {differing}"
    # This package wrote these bytes, so they are safe to decode in this process.
    return _check_frames(video, row)


def _check_frames(video: bytes, row: Row) -> tuple[str, str] | None:
    try:
        with av.open(io.BytesIO(video), "r") as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            frames, stored = [], True
            for frame in container.decode(stream):
                frames.append((frame.width, frame.height, frame.key_frame))
                stored = stored and (len(frames) > 1 or is_stored_picture(frame))
    except MemoryError:
        raise
    except (av.FFmpegError, IndexError) as error:
        return "decode", str(error)
    if not stored:
        return "picture", "not upright BT.601 of limited range"
    if len(frames) != row["frames"]:
        return "frames", f"{len(frames)} decoded, {row['frames']} in the index"
    if {frame[:2] for frame in frames} != {(row["width"], row["height"])}:
        return "resolution", f"not {row['width']}x{row['height']}"
    keyframes = [number for number, frame in enumerate(frames) if frame[2]]
    if keyframes != row["keyframes"]:
        return "keyframes", f"{keyframes}, index {row['keyframes']}"
    return None
