"""The record of a finished shard; its presence means that the shard is done."""

from __future__ import annotations

import socket
import time
from collections.abc import Collection, Iterator

import av
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from data_prep.schema import (
    INDEX_NAME,
    INDEX_SCHEMA,
    MANIFEST_NAME,
    QUARANTINE_NAME,
    ShardName,
    ShardRecord,
    SplitName,
)
from data_prep.storage import Store
from data_prep.video.clip import PreparedClip

SUFFIX = ".record.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SampleRow(_Frozen):
    """One sample: the columns of the index and facts about its source."""

    key: str
    offset: int
    size: int
    sha256: str
    label: int
    frames: int
    fps: float
    width: int
    height: int
    duration_s: float
    keyframes: tuple[int, ...]
    source: str
    copied: bool
    container: str
    codec: str
    pixel_format: str
    source_width: int
    source_height: int
    source_bytes: int
    rotation: int
    sample_aspect: float
    hdr: bool

    @classmethod
    def of(
        cls,
        clip: PreparedClip,
        *,
        key: str,
        offset: int,
        size: int,
        label: int,
        source: str,
        source_bytes: int,
    ) -> SampleRow:
        """The row of a clip that lies at `offset` of its tar."""
        original = clip.original
        return cls(
            key=key,
            offset=offset,
            size=size,
            sha256=clip.sha256,
            label=label,
            frames=clip.frames,
            fps=clip.fps,
            width=clip.width,
            height=clip.height,
            duration_s=round(clip.duration_s, 6),
            keyframes=clip.keyframes,
            source=source,
            copied=clip.copied,
            container=original.container,
            codec=original.codec,
            pixel_format=original.pixel_format,
            source_width=original.width,
            source_height=original.height,
            source_bytes=source_bytes,
            rotation=original.rotation,
            sample_aspect=round(original.sample_aspect, 6),
            hdr=original.hdr,
        )


class RejectedRow(_Frozen):
    key: str
    source: str
    where: str
    code: str
    detail: str


class Timings(_Frozen):
    """The cost of making a shard, which is not part of the identity of the data."""

    wall_s: float
    host: str
    pyav: str

    @classmethod
    def since(cls, began: float) -> Timings:
        """The cost of what began at `time.monotonic() == began` and has just ended."""
        wall_s = round(time.monotonic() - began, 3)
        return cls(wall_s=wall_s, host=socket.gethostname(), pyav=av.__version__)


class ShardResult(_Frozen):
    name: ShardName
    split: SplitName
    plan: str
    """The fingerprint of the plan of the shard."""
    samples: int
    bytes: int
    sha256: str
    """The sha256 of the tar; empty when no clip could be used, so that there is no tar."""
    rows: tuple[SampleRow, ...]
    rejected: tuple[RejectedRow, ...]
    timings: Timings


def record_name(shard: str) -> str:
    return shard.removesuffix(".tar") + SUFFIX


def stored_names(shards: Collection[str]) -> set[str]:
    """Every name that a sealed directory of these shards may hold."""
    about = {QUARANTINE_NAME, INDEX_NAME, MANIFEST_NAME}
    return {*shards, *map(record_name, shards), *about}


def read_result(store: Store, shard: str, plan: str) -> ShardResult | None:
    """Read a record; None unless it is whole and of this plan, and its tar is present."""
    try:
        result = ShardResult.model_validate_json(store.read(record_name(shard)))
    except (FileNotFoundError, ValueError):
        return None
    size = store.size(shard) if result.samples else 0
    return result if result.plan == plan and size == result.bytes else None


def rejected_lines(result: ShardResult) -> Iterator[dict[str, str]]:
    """Yield the lines of `quarantine.jsonl` about this shard."""
    for row in result.rejected:
        yield {
            "code": row.code,
            "detail": row.detail,
            "source": row.source,
            "where": row.where,
            "split": result.split,
        }


def index_table(result: ShardResult) -> pa.Table:
    """The rows of the index about this shard."""
    rows = [
        row.model_dump(include=set(INDEX_SCHEMA.names))
        | {"split": result.split, "shard": result.name}
        for row in result.rows
    ]
    return pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)


def shard_record(result: ShardResult) -> ShardRecord:
    """The entry of the manifest about this shard."""
    return ShardRecord(
        name=result.name,
        split=result.split,
        samples=result.samples,
        bytes=result.bytes,
        sha256=result.sha256,
    )
