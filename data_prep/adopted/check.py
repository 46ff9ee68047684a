"""Checks one adopted tar: its bytes, and that the index still describes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import IO, Any

from data_prep.adopted.members import Member, read_members
from data_prep.adopted.tar import SETTINGS
from data_prep.errors import DataError, MachineTrouble
from data_prep.schema import Manifest, ShardRecord
from data_prep.storage import DirectoryStore
from data_prep.video.probe import examine
from data_prep.video.rejection import Rejection

Fault = tuple[str, str, str]
"""(code, detail, key of the sample or empty)."""


def check_adopted(
    store: DirectoryStore, manifest: Manifest, entry: ShardRecord, rows: list[dict[str, Any]]
) -> Iterator[Fault]:
    """Yield what differs from the seal. The tar is read in pieces, since it may be large."""
    path = store.root / entry.name
    try:
        members = {sample.video.name: sample.video for sample in read_members(path) if sample.video}
    except DataError as error:
        yield "members", str(error), ""
        members = {}
    try:
        with path.open("rb") as tar:
            size = tar.seek(0, 2)
            tar.seek(0)
            if size != entry.bytes:
                yield "size", f"{size} bytes, {entry.bytes} were sealed", ""
            elif hashlib.file_digest(tar, "sha256").hexdigest() != entry.sha256:
                yield "sha256", "its bytes are not those that were sealed", ""
            for row in rows:
                fault = _check_sample(tar, members, manifest, row)
                if fault is not None:
                    yield (*fault, row["key"])
    except FileNotFoundError:
        yield "shard_missing", "no such file, or a link whose tar has moved", ""


def _check_sample(
    tar: IO[bytes], members: dict[str, Member], manifest: Manifest, row: dict[str, Any]
) -> tuple[str, str] | None:
    member = members.get(row["source"].partition("/")[2])
    if member is None or (member.offset, member.size) != (row["offset"], row["size"]):
        return "offset", "the index and the header of the tar disagree on its place"
    tar.seek(row["offset"])
    video = tar.read(row["size"])
    if hashlib.sha256(video).hexdigest() != row["sha256"]:
        return "video_sha256", "the video's bytes are not those of the index"
    if not -1 <= row["label"] < len(manifest.classes):
        return "label", f"{row['label']} of {len(manifest.classes)} classes"
    # These bytes were decoded once in a process of their own, so they are safe in this one.
    try:
        found = examine(video, SETTINGS)
    except (Rejection, MachineTrouble) as error:
        return "decode", " ".join(map(str, error.args))
    if found.frames != row["frames"]:
        return "frames", f"{found.frames} decoded, {row['frames']} in the index"
    if (found.width, found.height) != (row["width"], row["height"]):
        return "resolution", f"not {row['width']}x{row['height']}"
    return None
