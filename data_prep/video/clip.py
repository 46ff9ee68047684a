"""The messages to and from a decoding process."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from data_prep.video.decode import Original
from data_prep.video.picture import MIN_SIDE, SHORT_SIDE


class EncodeSettings(BaseModel):
    """The settings that determine the bytes of a clip."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    short_side: int = Field(default=SHORT_SIDE, ge=MIN_SIDE, multiple_of=2)
    """Pixels of the short side; smaller sources keep their size."""
    crf: int = Field(default=23, ge=0, le=51)
    """The quality of x264; a lower value means better and larger clips."""
    min_frames: int = Field(default=2, ge=1)
    """Shorter videos are left out; images are exempt."""
    max_frames: int = Field(default=36_000, ge=1)
    """Longer clips are left out (36 000 = 20 minutes at 30 per second)."""
    apply_sample_aspect: bool = False
    """Whether to stretch pixels that are not square. The published pipelines do not."""
    copy_suitable: bool = False
    """Whether to keep files that already have the normal form, byte for byte."""


@dataclass(frozen=True, slots=True)
class ClipRequest:
    path: str
    trim_start_s: float
    trim_end_s: float | None
    settings: EncodeSettings


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """A video that is examined and stays where it is: a range of bytes of a file."""

    path: str
    offset: int
    size: int
    settings: EncodeSettings


@dataclass(frozen=True, slots=True)
class PreparedClip:
    video: bytes
    """The clip in its normal form; empty for a video that was only probed."""
    sha256: str
    frames: int
    fps: float
    width: int
    height: int
    duration_s: float
    keyframes: tuple[int, ...]
    copied: bool
    """Whether the source was kept byte for byte."""
    original: Original


@dataclass(frozen=True, slots=True)
class RejectedClip:
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Trouble:
    """A failure of the machine during the clip, which is no verdict on it."""

    detail: str
