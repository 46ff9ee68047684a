"""The options of `vmp data shard`."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from data_prep.errors import DataError
from data_prep.jobs.pool import Caps
from data_prep.storage import is_url
from data_prep.video.clip import EncodeSettings
from data_prep.workdir import NAME as WORK_NAME


class ShardConfig(BaseModel):
    """The inputs, the output and the effort of one `vmp data shard`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    """The annotation format: kinetics, ssv2, ucf101, hmdb51, folder or csv."""
    videos: Path
    annotations: Path | None = None
    out: str
    """A directory, or a URL that fsspec understands."""
    dataset: str = ""
    """Part of every key; the name of the video directory by default."""
    split: str = "train"
    """The split of clips whose annotation names none."""
    val_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training videos that become the split `val`, chosen by a hash of their paths."""
    fold: int = Field(default=1, ge=1, le=3)
    """The official division to use (ucf101, hmdb51)."""
    clips_per_shard: int = Field(default=256, ge=1)
    encode: EncodeSettings = EncodeSettings()
    max_missing: float = Field(default=0.1, ge=0, le=1)
    """Share of listed clips that may be absent or malformed before the run is refused."""
    caps: Caps = Caps()
    jobs: int = Field(default=1, ge=1)
    """Number of local processes that claim shards."""
    decoders: int | None = Field(default=None, ge=1)
    """Decoding processes per job; by default the usable cores divided by the jobs."""
    work: Path | None = None
    """Work directory of all jobs; OUT/.prep by default, required when `out` is a URL."""


def work_dir(out: str, work: Path | None) -> Path:
    """The work directory. Raises `DataError` when `out` is a URL and `work` is not given."""
    if work is not None:
        return work.absolute()
    if is_url(out):
        raise DataError(f"--out {out}: a URL also needs --work, a directory that all jobs share")
    return Path(out).absolute() / WORK_NAME


def absolute_out(out: str) -> str:
    """Make a path absolute, for jobs that start in other directories; leave a URL alone."""
    return out if is_url(out) else str(Path(out).absolute())
