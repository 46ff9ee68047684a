"""One sample's bytes out of a tar, by position, with proof that they are the right ones."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Protocol

from pipeline.data.errors import DataError


class Location(Protocol):
    """Where a sample lies; `pipeline.data.shards.Sample` is one."""

    @property
    def key(self) -> str: ...
    @property
    def shard(self) -> str: ...
    @property
    def offset(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def sha256(self) -> str: ...


class ShardReader:
    """Reads samples of one shard directory; keeps its tars open. One per process."""

    def __init__(self, location: str, verify: bool = True) -> None:
        self._root = Path(location)
        self._verify = verify
        self._descriptors: dict[str, int] = {}

    def read(self, sample: Location) -> bytes:
        """The sample's video file.

        Raises OSError when storage fails, DataError when the bytes are not those that were sealed.
        """
        content = os.pread(self._descriptor(sample.shard), sample.size, sample.offset)
        if len(content) != sample.size:
            raise DataError(
                f"{self._root / sample.shard}: ends inside sample {sample.key}; "
                "run `vmp data verify` on the directory"
            )
        if self._verify and hashlib.sha256(content).hexdigest() != sample.sha256:
            raise DataError(
                f"{self._root / sample.shard}: sample {sample.key} is corrupt (sha256 differs from "
                "the index); run `vmp data verify` on the directory"
            )
        return content

    def _descriptor(self, shard: str) -> int:
        if shard not in self._descriptors:
            self._descriptors[shard] = os.open(self._root / shard, os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptors[shard]

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def __getstate__(self) -> dict[str, object]:
        """A copy for another process opens its own descriptors."""
        return self.__dict__ | {"_descriptors": {}}
