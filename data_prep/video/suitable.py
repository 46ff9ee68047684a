"""Recognises files that already have the normal form and may be kept byte for byte."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from data_prep.video.clip import ClipRequest, PreparedClip
from data_prep.video.decode import TimesContradictOrder, describe, frames, open_video
from data_prep.video.h264 import GOP
from data_prep.video.picture import MIN_SIDE, is_stored_picture


def copy_if_suitable(request: ClipRequest) -> PreparedClip | None:
    """Decode the file strictly and return it unchanged; None when it has to be encoded.

    A suitable file is an mp4 with one stream: H.264 yuv420p of limited range in the BT.601 matrix,
    upright, of even size within the limit, without B-frames, with times from 0, a keyframe at least
    every 16 frames, and no trim. Raises `Rejection` for a damaged file.
    """
    try:
        return _kept(request)
    except TimesContradictOrder:
        return None


def _kept(request: ClipRequest) -> PreparedClip | None:
    settings = request.settings
    if request.trim_start_s > 0 or request.trim_end_s is not None:
        return None
    with open_video(request.path) as (container, stream):
        if not _header_suits(container, stream, settings.short_side):
            return None
        keyframes: list[int] = []
        first: VideoFrame | None = None
        count, last = 0, Fraction(0)
        for item in frames(container, stream):
            if first is None:
                first = item.frame
                if item.time_s != 0 or not (first.key_frame and is_stored_picture(first)):
                    return None
                original = describe(container, stream, first)
            elif item.time_s <= last:
                return None
            if item.frame.key_frame:
                keyframes.append(count)
            count, last = count + 1, item.time_s
    bounded = all(after - before <= GOP for before, after in pairwise([*keyframes, count]))
    if not settings.min_frames <= count <= settings.max_frames or count < 2 or not bounded:
        return None
    video = Path(request.path).read_bytes()
    fps = round((count - 1) / float(last), 6)
    return PreparedClip(
        video=video,
        sha256=hashlib.sha256(video).hexdigest(),
        frames=count,
        fps=fps,
        width=original.width,
        height=original.height,
        duration_s=count / fps,
        keyframes=tuple(keyframes),
        copied=True,
        original=original,
    )


def _header_suits(container: InputContainer, stream: VideoStream, short_side: int) -> bool:
    context = stream.codec_context
    return (
        container.format.name.startswith("mov")
        and len(container.streams) == 1
        and context.name == "h264"
        and context.pix_fmt == "yuv420p"
        and not context.has_b_frames
        and context.width % 2 == context.height % 2 == 0
        and MIN_SIDE <= min(context.width, context.height) <= short_side
        and not stream.start_time
    )
