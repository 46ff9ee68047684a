"""Decoding only wanted frames gives the frames a full decode gives."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.decode import decode_frames
from pipeline.data.errors import SampleError


def every_frame(video: bytes) -> np.ndarray:
    with av.open(io.BytesIO(video)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def with_b_frames(pixels: np.ndarray, gop: int) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        options = {"x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes=2:open-gop=0"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[1:3], "yuv420p"
        for picture in [*map(av.VideoFrame.from_ndarray, pixels), None]:
            container.mux(stream.encode(picture))
    return buffer.getvalue()


LENGTH = 150
wanted_frames = st.lists(st.integers(0, LENGTH - 1), min_size=1, max_size=20)


class Video(NamedTuple):
    content: bytes
    keyframes: Sequence[int]
    frames: np.ndarray
    """Every frame, by a full decode."""


@pytest.fixture(scope="module")
def prepared(moving_squares, encode) -> Video:
    content, keyframes = encode(moving_squares(0, LENGTH, 32, 48))
    return Video(content, keyframes, every_frame(content))


@pytest.fixture(scope="module")
def reordered(moving_squares) -> Video:
    """A file with B-frames, whose decoder reads ahead, as one kept byte for byte may be."""
    content = with_b_frames(moving_squares(0, LENGTH, 32, 48), 10)
    return Video(content, range(0, LENGTH, 10), every_frame(content))


@settings(max_examples=60, deadline=None)
@given(wanted=wanted_frames)
def test_any_wanted_set_equals_the_full_decode(prepared: Video, wanted: list[int]) -> None:
    got = decode_frames(prepared.content, np.array(wanted), prepared.keyframes)
    assert (got == prepared.frames[wanted]).all()


@settings(max_examples=60, deadline=None)
@given(wanted=wanted_frames)
def test_reordered_frames_too(reordered: Video, wanted: list[int]) -> None:
    got = decode_frames(reordered.content, np.array(wanted), reordered.keyframes)
    assert (got == reordered.frames[wanted]).all()


def test_stretches_without_a_wanted_frame_are_not_decoded(prepared: Video) -> None:
    """With its first group of pictures zeroed the video still gives a late frame."""
    with av.open(io.BytesIO(prepared.content)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    damaged = bytearray(prepared.content)
    for packet in packets[: prepared.keyframes[1]]:
        damaged[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    got = decode_frames(bytes(damaged), np.array([LENGTH - 1]), prepared.keyframes)
    assert (got == prepared.frames[LENGTH - 1]).all()


@pytest.mark.parametrize(
    ("damage", "wanted", "keyframes", "message"),
    [
        (lambda video: b"", 0, None, "cannot be decoded"),
        (lambda video: b"<html>not a video</html>" * 50, 0, None, "cannot be decoded"),
        (lambda video: video[: len(video) // 2], LENGTH - 1, None, "frame"),
        (lambda video: video, LENGTH, None, "has 150 frames and no frame 150"),
        (lambda video: video, 5, (0, 4), "frame 4 is not the keyframe"),
    ],
)
def test_unreadable_video(prepared: Video, damage, wanted, keyframes, message) -> None:
    video = damage(prepared.content)
    with pytest.raises(SampleError, match=message):
        decode_frames(video, np.array([wanted]), keyframes or prepared.keyframes)
