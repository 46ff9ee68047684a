"""Decoding of selected frames of a prepared video, and of no more frames than they need."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from data_prep.video.picture import rgb_pixels
from pipeline.data.errors import SampleError

Decoder = Callable[[bytes, NDArray[np.int64], Sequence[int]], NDArray[np.uint8]]
"""(video file, wanted frames, keyframes) -> (len(wanted), H, W, 3) uint8."""

# A seek takes about as long as demuxing this many packets.
_SEEK_WORTH_PACKETS = 32


def decode_frames(
    video: bytes, wanted: NDArray[np.int64], keyframes: Sequence[int]
) -> NDArray[np.uint8]:
    """Decode frames of an mp4: (len(wanted), H, W, 3) uint8 RGB.

    Args:
        wanted: frame numbers in any order; repeats are allowed.
        keyframes: frame numbers at which decoding can start, 0 first. The frames between two
            keyframes are skipped when none of them is wanted.

    Raises SampleError when the video cannot be decoded or ends before a wanted frame.
    """
    numbers, places = np.unique(wanted, return_inverse=True)
    try:
        with av.open(io.BytesIO(video), "r", format="mp4") as container:
            frames = _pictures(container, numbers.tolist(), keyframes)
    except av.FFmpegError as error:
        raise SampleError(f"cannot be decoded: {error}") from error
    return frames if np.array_equal(numbers, wanted) else frames[places]


def _pictures(
    container: InputContainer, numbers: list[int], keyframes: Sequence[int]
) -> NDArray[np.uint8]:
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        raise SampleError("has no video stream")
    # Loader processes already fill the cores, so each decodes with one thread.
    stream.codec_context.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    rgb = VideoReformatter()
    pictures: NDArray[np.uint8] | None = None
    done = 0
    for number, frame in _decoded(container, stream, numbers, keyframes):
        if number != numbers[done]:
            continue
        picture = rgb_pixels(frame, rgb)
        if pictures is None:
            pictures = np.empty((len(numbers), *picture.shape), np.uint8)
        if picture.shape != pictures.shape[1:]:
            raise SampleError(f"changes its picture size at frame {number}")
        pictures[done] = picture
        done += 1
        if done == len(numbers):
            return pictures
    raise SampleError(f"ends before frame {numbers[done]}")


def _decoded(
    container: InputContainer, stream: VideoStream, numbers: list[int], keyframes: Sequence[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield numbered frames, from each needed keyframe to the last wanted frame after it."""
    last_wanted: dict[int, int] = {}
    for number in numbers:
        last_wanted[keyframes[bisect_right(keyframes, number) - 1]] = number
    entries = stream.index_entries
    if keyframes[0] != 0 or len(entries) <= numbers[-1]:
        raise SampleError(f"has {len(entries)} frames and no frame {numbers[-1]}")
    packets = container.demux(stream)
    position = 0
    for start, last in last_wanted.items():
        # `position` counts packets read, which may be ahead of the frames that a reordering
        # decoder has returned.
        if not 0 <= start - position <= _SEEK_WORTH_PACKETS:
            container.seek(entries[start].timestamp, stream=stream)
            packets = container.demux(stream)
        if position:
            stream.codec_context.flush_buffers()
        number, position = start, start
        keyframe = _keyframe(packets, start, entries[start].timestamp)
        for packet in chain([keyframe], packets):
            position += 1
            # The empty packet at the end of the file drains the decoder.
            for frame in packet.decode():
                yield number, frame
                number += 1
            if number > last:
                break


def _keyframe(packets: Iterator[Packet[VideoStream]], number: int, dts: int) -> Packet[VideoStream]:
    for packet in packets:
        if packet.dts == dts:
            if not packet.is_keyframe:
                raise SampleError(f"frame {number} is not the keyframe its index promises")
            return packet
    raise SampleError(f"ends before frame {number}")
