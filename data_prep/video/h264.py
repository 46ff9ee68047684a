"""Encodes clips in the normal form in which every clip is stored.

It is H.264, 8-bit yuv420p, BT.601 limited range, with a keyframe every 16 frames, closed groups, no
B-frames, no CABAC, no deblocking (`fastdecode`), timestamps from 0 and the index before the data.
Decoding a few spread frames of such a clip costs much less than decoding them from a download.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import av
from av.video.frame import PictureType, VideoFrame

from data_prep.video.picture import BT601, LIMITED_RANGE

GOP = 16
TIME_BASE = Fraction(1, 90_000)
# Equal frames must give equal bytes whatever was encoded before, because a rebuilt shard has to
# match its checksum. Therefore x264 uses one thread and no macroblock tree. With the tree, about 1
# in 200 clips of small frames depended on the clips before them in the same process (x264 of PyAV
# 18.1); without it none of 4000 did. The cost is about a tenth more bytes, for a finer picture.
_X264 = (
    f"keyint={GOP}:min-keyint={GOP}:scenecut=0:bframes=0:open-gop=0"
    ":threads=1:lookahead-threads=1:sync-lookahead=0:rc-lookahead=0:mbtree=0"
)


@dataclass(frozen=True, slots=True)
class EncodedClip:
    video: bytes
    frames: int
    keyframes: tuple[int, ...]
    """Numbers of the keyframes; the first is 0."""
    duration_s: float


def encode_clip(
    frames: Iterable[tuple[VideoFrame, int]], *, width: int, height: int, fps: float, crf: int
) -> EncodedClip:
    """Encode yuv420p frames, each with its time in units of `TIME_BASE`, to one mp4.

    `width` and `height` must be even. `fps` only fills the header; the times decide.
    Raises `av.FFmpegError` when the encoder refuses.
    """
    count, packets, last, step = 0, 0, 0, round(1 / (fps * TIME_BASE))
    keyframes: list[int] = []
    # The muxer reopens its output to move the index to the front, so it needs a file. That file
    # is in memory, because a full TMPDIR says nothing about a clip.
    with open(os.memfd_create("clip"), "rb") as scratch:
        with av.open(
            f"/dev/fd/{scratch.fileno()}",
            "w",
            format="mp4",
            options={"movflags": "+faststart", "fflags": "+bitexact"},
        ) as container:
            stream = container.add_stream(
                "libx264",
                rate=Fraction(fps).limit_denominator(1001),
                options={
                    "preset": "veryfast",
                    "tune": "fastdecode",
                    "crf": str(crf),
                    "x264-params": _X264,
                },
            )
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.time_base = TIME_BASE
            context = stream.codec_context
            context.time_base = TIME_BASE
            context.thread_count = 1
            context.colorspace, context.color_range = BT601, LIMITED_RANGE

            for frame, time in itertools.chain(frames, [(None, 0)]):
                if frame is not None:
                    frame.pts, frame.time_base, frame.pict_type = time, TIME_BASE, PictureType.NONE
                    count, last = count + 1, time
                for packet in stream.encode(frame):
                    # Without B-frames, packets come in the order of their frames.
                    if packet.is_keyframe:
                        keyframes.append(packets)
                    packets += 1
                    container.mux(packet)
        video = scratch.read()
    return EncodedClip(video, count, tuple(keyframes), float((last + step) * TIME_BASE))
