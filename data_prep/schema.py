"""The contract between data preparation and training: the files of a shard directory.

`<split>-000000.tar`   WebDataset samples `<key>.mp4` + `<key>.json`
`index.parquet`        one row per sample, columns `INDEX_SCHEMA`, rows in global storage order
`manifest.json`        a `Manifest`, written last: readers trust only what it names
`quarantine.jsonl`     one line per input that was left out
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, NonNegativeInt, StringConstraints

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.parquet"
QUARANTINE_NAME = "quarantine.jsonl"

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # hex digest, unique over the data set
        ("split", pa.string()),
        ("shard", pa.string()),  # file name of the tar
        ("offset", pa.int64()),  # first byte of the video inside the tar
        ("size", pa.int64()),  # bytes of the video
        ("sha256", pa.string()),  # of the video's bytes
        ("label", pa.int32()),  # position in Manifest.classes; -1 = unlabelled
        ("frames", pa.int32()),  # counted by decoding, never taken from the container
        ("fps", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("duration_s", pa.float64()),
        ("keyframes", pa.list_(pa.int32())),  # frame numbers a decoder can seek to, first is 0
        ("source", pa.string()),  # path of the input relative to the video directory
    ]
)


SPLIT_PATTERN = r"[A-Za-z0-9_-]+"
"""The name of a split is part of file names: those of shards, plans and caches."""

# Names may come from files that others have written, and serve as paths, so only plain ones pass.
SplitName = Annotated[str, StringConstraints(pattern=rf"^{SPLIT_PATTERN}$", max_length=200)]
ShardName = Annotated[str, StringConstraints(pattern=rf"^{SPLIT_PATTERN}\.tar$", max_length=220)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


ADOPTED_FORMAT = "webdataset"
"""The format, in the settings of a manifest, of tars that `vmp data adopt` indexed."""


def is_member_name(name: str) -> bool:
    """Whether the name of a tar's member is a plain relative path, which can do no harm.

    Names with `..`, absolute paths, backslashes, control characters, marks that reverse text and
    hidden files are not.
    """
    parts = name.split("/")
    plain = name.isprintable() and "\\" not in name and len(name) <= 1000
    return plain and all(part and not part.startswith(".") for part in parts)


def how_to_seal(names: Iterable[str]) -> str:
    """Advice about a directory without a manifest, judged by the names of its files."""
    if any(name.endswith(".tar") for name in names):
        return (
            "its tars were written by another tool (video2dataset, webdataset) or never sealed: "
            "index them with `vmp data adopt`, or repeat the command that was meant to make this "
            "directory"
        )
    return "make one with `vmp data shard`"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardRecord(_Frozen):
    """The manifest's entry for one tar."""

    name: ShardName
    split: SplitName
    samples: NonNegativeInt
    bytes: NonNegativeInt
    sha256: Sha256


class Manifest(_Frozen):
    """The seal of a shard directory."""

    schema_version: int = SCHEMA_VERSION
    dataset: str
    classes: tuple[str, ...]
    splits: dict[SplitName, NonNegativeInt]
    """Samples per split."""
    settings: dict[str, Any]
    """The encoding and sharding settings that determine the bytes."""
    shards: tuple[ShardRecord, ...]
    index_sha256: Sha256
    digest: Sha256 | Literal[""] = ""
    """The sha256 of everything above, which identifies the data set."""

    @property
    def adopted(self) -> bool:
        """Whether other tools made the tars, whose videos are neither upright nor of one form."""
        return self.settings.get("format") == ADOPTED_FORMAT

    def compute_digest(self) -> str:
        content = self.model_dump(mode="json", exclude={"digest"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def sealed(self) -> Manifest:
        """A copy whose digest matches its content."""
        return self.model_copy(update={"digest": self.compute_digest()})
