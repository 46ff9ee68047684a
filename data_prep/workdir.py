"""The directory that the jobs of a sharding run share: plans, claims, progress, poison list.

It lies on a file system that every job sees; the shards themselves may lie elsewhere.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from data_prep.annotation import Problem
from data_prep.durable import move, publish
from data_prep.errors import DataError, refused
from data_prep.jobs.pool import Caps
from data_prep.plan import PlannedClip, PlannedShard
from data_prep.video.clip import EncodeSettings

NAME = ".prep"
# Paths are stored as bytes, because file names need not be UTF-8.
_CLIP_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("path", pa.binary()),
        ("label", pa.int32()),
        ("trim_start_s", pa.float64()),
        ("trim_end_s", pa.float64()),
        ("where", pa.binary()),
    ]
)


class SplitPlan(BaseModel):
    """The plan of one split. Its clips lie in a Parquet file with one row group per shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: str
    dataset: str
    classes: tuple[str, ...]
    format: str
    encode: EncodeSettings
    fold: int
    clips_per_shard: int
    videos: Path
    out: str
    caps: Caps
    max_missing: float = 1.0
    """Share of listed clips that may be lost, decoding included."""
    picture_version: int = 1
    """The value of `data_prep.video.picture.PICTURE_VERSION` at planning."""
    num_shards: int
    num_clips: int
    fingerprint: str
    """The sha256 of everything that determines the bytes of the shards."""

    def shard_names(self) -> list[str]:
        return [f"{self.split}-{number:06d}.tar" for number in range(self.num_shards)]


def fingerprint(shards: Iterable[PlannedShard], shaping: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(shaping, sort_keys=True).encode())
    for shard in shards:
        digest.update(shard.name.encode())
        for clip in shard.clips:
            row = [clip.key, clip.path, clip.label, clip.trim_start_s, clip.trim_end_s]
            digest.update(json.dumps(row).encode())
    return digest.hexdigest()


class _Poison(BaseModel):
    key: str
    code: str
    detail: str


_PROBLEM = TypeAdapter(Problem)


def _read_plan(path: Path) -> SplitPlan:
    try:
        return SplitPlan.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{path}: not a plan ({_why(error)}); remove {path.parent} to plan anew"
        ) from None


def _why(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(ascii(part).strip("'") for part in problem["loc"][:3])
    return f"{where[:80] or 'content'}: {problem['msg']}"


@dataclass(frozen=True, slots=True)
class Workdir:
    root: Path

    @property
    def claims(self) -> Path:
        return self.root / "claims"

    @property
    def progress(self) -> Path:
        return self.root / "progress"

    @property
    def scratch(self) -> Path:
        return self.root / "scratch"

    def create(self) -> None:
        try:
            for path in (self.claims, self.progress, self.scratch):
                path.mkdir(parents=True, exist_ok=True)
            publish(self.root / "writable", b"")
        except OSError as error:
            raise refused(error, f"{self.root}: cannot be written") from None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock that lets one call at a time plan or seal."""
        with (self.root / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                # On a file system without locks the user must avoid concurrent calls.
            yield

    def save_plan(
        self, plan: SplitPlan, shards: list[PlannedShard], problems: list[Problem]
    ) -> None:
        """Write the problems, the clips and, last, the header."""
        lines = "".join(json.dumps(asdict(problem)) + "\n" for problem in problems)
        publish(self.root / f"problems-{plan.split}.jsonl", lines.encode())
        temporary = self.root / f".clips-{plan.split}.{uuid.uuid4().hex}.tmp"
        with pq.ParquetWriter(temporary, _CLIP_SCHEMA) as writer:
            for shard in shards:
                writer.write_table(_clip_table(shard.clips), row_group_size=len(shard.clips))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        move(temporary, self._clips_path(plan.split))
        publish(self._header_path(plan.split), plan.model_dump_json(indent=1).encode())

    def plans(self) -> list[SplitPlan]:
        """The plans of all splits, sorted by name."""
        headers = sorted(self.root.glob("plan-*.json"))
        return [_read_plan(header) for header in headers]

    def allow_missing(self, plan: SplitPlan, max_missing: float) -> None:
        """Change the bound of a plan that is otherwise the same."""
        if plan.max_missing != max_missing:
            changed = plan.model_copy(update={"max_missing": max_missing})
            publish(self._header_path(plan.split), changed.model_dump_json(indent=1).encode())

    def relocate(self, out: str) -> None:
        """Continue shards that were moved together with their plans at their new place."""
        for plan in self.plans():
            if plan.out != out:
                moved = plan.model_copy(update={"out": out})
                publish(self._header_path(plan.split), moved.model_dump_json(indent=1).encode())

    def shard(self, plan: SplitPlan, number: int) -> PlannedShard:
        table = pq.ParquetFile(self._clips_path(plan.split)).read_row_group(number)
        clips = tuple(_planned_clip(row) for row in table.to_pylist())
        return PlannedShard(plan.shard_names()[number], plan.split, clips)

    def keys(self, plan: SplitPlan) -> frozenset[str]:
        table = pq.read_table(self._clips_path(plan.split), columns=["key"])
        return frozenset(table["key"].to_pylist())

    def sources(self, plan: SplitPlan) -> Iterator[str]:
        """The paths of all clips of a plan."""
        table = pq.read_table(self._clips_path(plan.split), columns=["path"])
        return (os.fsdecode(path) for path in table["path"].to_pylist())

    def problems(self, split: str) -> list[Problem]:
        path = self.root / f"problems-{split}.jsonl"
        try:
            lines = path.read_bytes().splitlines()
            return [_PROBLEM.validate_json(line) for line in lines]
        except ValidationError as error:
            raise DataError(
                f"{path}: not the list of problems that was written ({_why(error)})"
            ) from None

    def forget_progress(self) -> None:
        for path in self.progress.glob("*.json"):
            path.unlink(missing_ok=True)

    def clip_counts(self, plan: SplitPlan) -> list[int]:
        """The number of clips in each shard."""
        metadata = pq.ParquetFile(self._clips_path(plan.split)).metadata
        return [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]

    def poison(self) -> dict[str, tuple[str, str]]:
        """The (code, detail) by key of files that killed their process or exceeded its limits."""
        path = self.root / "poison.jsonl"
        if not path.exists():
            return {}
        found: dict[str, tuple[str, str]] = {}
        for line in path.read_bytes().splitlines():
            try:
                row = _Poison.model_validate_json(line)
            except ValidationError:  # a killed writer leaves half a line
                continue
            found[row.key] = (row.code, row.detail)
        return found

    def add_poison(self, key: str, code: str, detail: str) -> None:
        """Append an entry in one write, so that lines of several jobs do not mix."""
        line = "\n" + json.dumps({"key": key, "code": code, "detail": detail})
        descriptor = os.open(self.root / "poison.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(descriptor, line.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _clips_path(self, split: str) -> Path:
        return self.root / f"clips-{split}.parquet"

    def _header_path(self, split: str) -> Path:
        return self.root / f"plan-{split}.json"


def _clip_table(clips: tuple[PlannedClip, ...]) -> pa.Table:
    columns = {
        "key": [clip.key for clip in clips],
        "path": [os.fsencode(clip.path) for clip in clips],
        "label": [clip.label for clip in clips],
        "trim_start_s": [clip.trim_start_s for clip in clips],
        "trim_end_s": [clip.trim_end_s for clip in clips],
        "where": [os.fsencode(clip.where) for clip in clips],
    }
    return pa.table(columns, schema=_CLIP_SCHEMA)


def _planned_clip(row: dict[str, Any]) -> PlannedClip:
    text = {"path": os.fsdecode(row["path"]), "where": os.fsdecode(row["where"])}
    return PlannedClip(**{**row, **text})
