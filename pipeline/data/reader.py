"""Reading of a sample's bytes from a tar by position, with a check of their sha256."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.data.errors import DataError
from pipeline.data.storage import Storage

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.1


class Sample(NamedTuple):
    """A row of the index: all that a loader process needs to know about a sample."""

    key: str
    shard: str
    offset: int
    size: int
    sha256: str
    label: int
    frames: int
    keyframes: tuple[int, ...]


@dataclass(frozen=True)
class ShardReader:
    """Reader of the samples of a shard directory, which tries each read up to `attempts` times."""

    location: str
    storage: Storage
    verify: bool = True
    attempts: int = 4
    adopted: bool = False
    """Whether other tools made the videos, see `Manifest.adopted`."""

    def read(self, sample: Sample) -> bytes:
        """Return the bytes of the sample's video file.

        Raises DataError when a shard is gone or holds other bytes than were sealed, and OSError
        when storage still fails at the last attempt.
        """
        pause = _FIRST_PAUSE_S
        for left in reversed(range(self.attempts)):
            try:
                return self._read_once(sample)
            except FileNotFoundError:
                raise DataError(
                    f"{self.location}/{sample.shard}: no longer there; "
                    "run `vmp data verify` on the directory"
                ) from None
            except (OSError, DataError) as error:
                self.storage.forget(sample.shard)
                if not left:
                    raise
                logger.warning("reading again in %.1f s: %s", pause, error)
            time.sleep(pause)
            pause *= 4
        raise AssertionError("attempts is at least 1")

    def _read_once(self, sample: Sample) -> bytes:
        content = self.storage.read(sample.shard, sample.offset, sample.size)
        if len(content) != sample.size:
            problem = f"ends inside sample {sample.key}"
        elif self.verify and hashlib.sha256(content).hexdigest() != sample.sha256:
            problem = f"sample {sample.key} is corrupt (sha256 differs from the index)"
        else:
            return content
        raise DataError(
            f"{self.location}/{sample.shard}: {problem}; run `vmp data verify` on the directory"
        )
