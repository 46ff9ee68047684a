"""Reads the pictures of a file as sharding would store them, without compression."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from data_prep.annotation import VIDEO_SUFFIXES
from data_prep.errors import MachineTrouble
from data_prep.video.decode import frame_step, frames, open_video, open_video_bytes
from data_prep.video.picture import Picture, rgb_pixels
from data_prep.video.rejection import Rejection


class UnreadableVideoError(ValueError):
    """The reason why sharding would leave a file out, as `code: detail`."""


class TimedPicture(NamedTuple):
    """A picture and when it is shown, in seconds since the first one."""

    time_s: float
    shown_s: float
    """How long it is shown, according to the nominal rate of the file."""
    pixels: NDArray[np.uint8]
    """(H, W, 3) RGB."""


def read_pictures(path: str) -> Iterator[NDArray[np.uint8]]:
    """Yield all frames upright in order of presentation, each (H, W, 3) uint8 RGB.

    Raises `UnreadableVideoError` for an unusable file and when the disk fails.
    """
    return (picture.pixels for picture in read_timed_pictures(path))


def read_timed_pictures(path: str) -> Iterator[TimedPicture]:
    """Yield what `read_pictures` yields, with times, one frame in memory at a time.

    Times never decrease: a frame without a time, or with one before its predecessor's, as AVI files
    with B-frames have, comes one nominal step after it. Raises `UnreadableVideoError`.
    """
    rgb = VideoReformatter()
    picture: Picture | None = None
    origin: float | None = None
    before = 0.0
    try:
        with open_video(path) as (container, stream):
            step = float(frame_step(stream))
            for item in frames(container, stream, constant_rate=True):
                frame = item.frame
                time = None
                if frame.pts is not None and frame.time_base is not None:
                    stated = float(frame.pts * frame.time_base)
                    origin = stated if origin is None else origin
                    time = stated - origin
                if time is None or time < before:
                    time = 0.0 if picture is None else before + step
                picture = picture or Picture(frame)
                before = time
                yield TimedPicture(time, step, rgb_pixels(picture(frame), rgb).copy())
    except MachineTrouble as error:
        raise UnreadableVideoError(str(error)) from None
    except Rejection as error:
        raise UnreadableVideoError(f"{error.code}: {error.detail}") from None
    if picture is None:
        raise UnreadableVideoError("no_frames: a video stream without frames")


def read_selected(video: bytes, wanted: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    """Yield the `wanted` frames, rising numbers, of the content of a file as `read_pictures` does.

    Decoding stops at the last of them. Raises `UnreadableVideoError`, also if the video is shorter.
    """
    rgb = VideoReformatter()
    picture: Picture | None = None
    left = list(reversed(wanted))
    try:
        with open_video_bytes(video) as (container, stream):
            for number, item in enumerate(frames(container, stream, constant_rate=True)):
                picture = picture or Picture(item.frame)  # the first frame decides, wanted or not
                if number == left[-1]:
                    yield rgb_pixels(picture(item.frame), rgb).copy()
                    left.pop()
                if not left:
                    return
    except MachineTrouble as error:
        raise UnreadableVideoError(str(error)) from None
    except Rejection as error:
        raise UnreadableVideoError(f"{error.code}: {error.detail}") from None
    raise UnreadableVideoError(f"past_end: it ends before frame {left[-1]}")


def stated_seconds(path: str) -> float | None:
    """The length that the file states, which may be wrong; None when it states none.

    For displays of progress only. A file that cannot be opened states none.
    """
    try:
        with open_video(path) as (container, _):
            return None if not container.duration else container.duration / av.time_base
    except (Rejection, MachineTrouble):
        return None


def is_video_name(name: str) -> bool:
    """Whether the suffix of a file name is that of a video."""
    return PurePath(name).suffix.lower() in VIDEO_SUFFIXES
