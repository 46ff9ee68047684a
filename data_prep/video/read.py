"""Reads the pictures of a file as sharding would store them, without compression."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from data_prep.errors import MachineTrouble
from data_prep.video.decode import frames, open_video
from data_prep.video.picture import Picture, rgb_pixels
from data_prep.video.rejection import Rejection


class UnreadableVideoError(ValueError):
    """The reason why sharding would leave a file out, as `code: detail`."""


def read_pictures(path: str) -> Iterator[NDArray[np.uint8]]:
    """Yield all frames upright in order of presentation, each (H, W, 3) uint8 RGB.

    Raises `UnreadableVideoError` for an unusable file and when the disk fails.
    """
    rgb = VideoReformatter()
    picture: Picture | None = None
    try:
        with open_video(path) as (container, stream):
            # Times do not matter here, only the order.
            for item in frames(container, stream, constant_rate=True):
                picture = picture or Picture(item.frame)
                yield rgb_pixels(picture(item.frame), rgb).copy()
    except MachineTrouble as error:
        raise UnreadableVideoError(str(error)) from None
    except Rejection as error:
        raise UnreadableVideoError(f"{error.code}: {error.detail}") from None
    if picture is None:
        raise UnreadableVideoError("no_frames: a video stream without frames")
