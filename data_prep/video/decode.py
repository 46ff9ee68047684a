"""Strict decoding of files that nobody has checked.

Containers lie about frame counts and durations, decoders conceal damage: here every frame is
decoded, and the first sign of damage rejects the file.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import av
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from data_prep.annotation import IMAGE_SUFFIXES

# Playlists and scripts (hls, concat, ...) are left out on purpose: a "video" must not open others.
_CONTAINERS = (
    "3gp,asf,avi,bmp_pipe,flv,gif,h264,hevc,jpeg_pipe,matroska,webm,mjpeg,mov,mp4,mpeg,mpegts,"
    "mpegvideo,m4v,nut,ogg,png_pipe,webp_pipe,image2"
)
_SMPTE2084, _ARIB_STD_B67 = 16, 18
_PREROLL_S = 2.0


class Rejection(Exception):  # noqa: N818 - an outcome, not a failure of the program
    """This input is left out, for the reason `code`."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail)
        self.code, self.detail = code, detail


@dataclass(frozen=True, slots=True)
class Original:
    """What the source was, for the records; nothing is computed from it later."""

    container: str
    codec: str
    pixel_format: str
    width: int
    height: int
    rotation: int
    """Degrees counter-clockwise that a player turns it by."""
    sample_aspect: float
    hdr: bool
    """PQ or HLG transfer; it is not tone-mapped."""
    bytes: int


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    frame: VideoFrame
    time_s: Fraction
    """Since the first frame of the file."""


@contextmanager
def open_video(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its best video stream, one decoder thread, errors not concealed.

    Raises `Rejection`: missing, unreadable, empty, not_video, no_video, unsupported_codec.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise Rejection("missing", error.strerror or "no such file") from None
    if stat.S_ISREG(found.st_mode) and found.st_size == 0:
        raise Rejection("empty", "0 bytes")
    options = {"format_whitelist": _CONTAINERS}
    if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES:
        options["pattern_type"] = "none"
    try:
        # An open file instead of a name: names may be no URL, no UTF-8 or look like a protocol.
        with open(path, "rb", buffering=0) as file, _container(file, options) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise Rejection("no_video", f"{container.format.name} without a video stream")
            if not isinstance(stream, VideoStream) or stream.codec_context is None:
                raise Rejection("unsupported_codec", "no decoder for the video stream")
            stream.thread_type = "NONE"
            stream.codec_context.options = {"err_detect": "explode"}
            yield container, stream
    except PermissionError as error:
        raise Rejection("unreadable", str(error.strerror)) from None


def _container(file: object, options: dict[str, str]) -> InputContainer:
    try:
        return av.open(file, "r", options=options, metadata_errors="ignore")
    except PermissionError:
        raise
    except MemoryError:
        raise Rejection("memory", "more than the memory cap") from None
    except av.FFmpegError as error:
        raise Rejection("not_video", _message(error)) from None


def describe(container: InputContainer, stream: VideoStream, first: VideoFrame) -> Original:
    aspect = stream.sample_aspect_ratio
    return Original(
        container=container.format.name.split(",")[0],
        codec=stream.codec_context.name,
        pixel_format=first.format.name,
        width=first.width,
        height=first.height,
        rotation=first.rotation,
        sample_aspect=float(aspect) if aspect else 1.0,
        hdr=first.color_trc in (_SMPTE2084, _ARIB_STD_B67),
        bytes=container.size,
    )


def frames(
    container: InputContainer, stream: VideoStream, *, start_s: float = 0.0, seek: bool = True
) -> Iterator[DecodedFrame]:
    """Frames from `start_s` on, in order of presentation.

    Raises `Rejection` `corrupt` at the first damaged packet or frame and `resolution_change`.
    """
    origin = Fraction(stream.start_time or 0) * (stream.time_base or 1)
    seeks = seek and start_s > _PREROLL_S
    if seeks:
        target = float(origin) + start_s - _PREROLL_S
        container.seek(int(target / (stream.time_base or 1)), stream=stream, backward=True)
    guessed = 1 / (stream.average_rate or stream.guessed_rate or Fraction(25))
    shape: tuple[int, int] | None = None
    previous: Fraction | None = None
    for number, frame in enumerate(_decode(container, stream, from_start=not seeks)):
        if shape is None:
            shape = (frame.width, frame.height)
        elif shape != (frame.width, frame.height):
            detail = f"{shape} to {(frame.width, frame.height)} at frame {number}"
            raise Rejection("resolution_change", detail)
        if frame.pts is None or frame.time_base is None:
            time = previous + guessed if previous is not None else Fraction(0)
        else:
            time = frame.pts * frame.time_base - origin
        previous = time
        if time >= Fraction(start_s) - Fraction(1, 1000):
            if frame.is_corrupt:
                raise Rejection("corrupt", f"damaged data in frame {number}")
            yield DecodedFrame(frame, time)


def _decode(
    container: InputContainer, stream: VideoStream, *, from_start: bool
) -> Iterator[VideoFrame]:
    count = 0
    starts = from_start
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise Rejection("corrupt", f"damaged packet after {count} frames")
            if starts and packet.size and not packet.is_keyframe:
                # Decoders drop what they cannot predict, without a word.
                raise Rejection("corrupt", "does not start with a keyframe")
            starts = False
            for frame in packet.decode():
                count += 1
                yield frame
    except MemoryError:
        raise Rejection("memory", f"more than the memory cap after {count} frames") from None
    except av.FFmpegError as error:
        raise Rejection("corrupt", f"after {count} frames: {_message(error)}") from None


def display_filters(frame: VideoFrame) -> list[tuple[str, str | None]]:
    """FFmpeg filters that turn the frame upright, as a player would (the display matrix)."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(data, SideData):
        return []
    a, b, _, c, d, *_ = struct.unpack("<9i", bytes(data))
    if abs(b) > abs(a):
        # x and y change places: the four ways of FFmpeg's transpose.
        if b > 0:
            return [("transpose", "clock" if c < 0 else "cclock_flip")]
        return [("transpose", "cclock" if c > 0 else "clock_flip")]
    return [(name, None) for name, sign in (("hflip", a), ("vflip", d)) if sign < 0]


def _message(error: av.FFmpegError) -> str:
    return (error.strerror or type(error).__name__).strip()
