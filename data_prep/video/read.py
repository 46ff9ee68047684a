"""Reads the pictures of a video as sharding would store them, without compression."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from data_prep.errors import MachineTrouble
from data_prep.video.decode import frames, open_video, open_video_bytes
from data_prep.video.picture import Picture, rgb_pixels
from data_prep.video.rejection import Rejection


class UnreadableVideoError(ValueError):
    """The reason why sharding would leave a file out, as `code: detail`."""


def read_pictures(path: str) -> Iterator[NDArray[np.uint8]]:
    """Yield all frames upright in order of presentation, each (H, W, 3) uint8 RGB.

    Raises `UnreadableVideoError` for an unusable file and when the disk fails.
    """
    any_frame = False
    with _reasons(), open_video(path) as opened:
        for pixels in _pixels(opened, None):
            any_frame = True
            yield pixels
    if not any_frame:
        raise UnreadableVideoError("no_frames: a video stream without frames")


def read_selected(video: bytes, wanted: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    """Yield the `wanted` frames, rising numbers, of the content of a file as `read_pictures` does.

    Decoding stops at the last of them. Raises `UnreadableVideoError`, also if the video is shorter.
    """
    left = len(wanted)
    with _reasons(), open_video_bytes(video) as opened:
        for pixels in _pixels(opened, wanted):
            left -= 1
            yield pixels
    if left:
        raise UnreadableVideoError(f"past_end: it ends before frame {wanted[-left]}")


def _pixels(
    opened: tuple[InputContainer, VideoStream], wanted: Sequence[int] | None
) -> Iterator[NDArray[np.uint8]]:
    rgb = VideoReformatter()
    picture: Picture | None = None
    done = 0
    # Times do not matter here, only the order.
    for number, item in enumerate(frames(*opened, constant_rate=True)):
        picture = picture or Picture(item.frame)
        if wanted is None or number == wanted[done]:
            yield rgb_pixels(picture(item.frame), rgb).copy()
            done += 1
        if wanted is not None and done == len(wanted):
            return


@contextmanager
def _reasons() -> Iterator[None]:
    try:
        yield
    except MachineTrouble as error:
        raise UnreadableVideoError(str(error)) from None
    except Rejection as error:
        raise UnreadableVideoError(f"{error.code}: {error.detail}") from None
