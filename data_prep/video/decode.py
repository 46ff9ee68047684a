"""Decodes unchecked files strictly.

Containers lie about frame counts and durations, and decoders conceal damage. Therefore every frame
is decoded, and the first sign of damage rejects the file.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from data_prep.annotation import IMAGE_SUFFIXES
from data_prep.errors import verdict
from data_prep.video.rejection import Rejection

# Playlists and scripts (hls, concat, ...) are absent, because a "video" must not open other files.
_CONTAINERS = (
    "3gp,asf,avi,bmp_pipe,flv,gif,h264,hevc,jpeg_pipe,matroska,webm,mjpeg,mov,mp4,mpeg,mpegts,"
    "mpegvideo,m4v,nut,ogg,png_pipe,webp_pipe,image2"
)
_SMPTE2084, _ARIB_STD_B67 = 16, 18
_PREROLL_S = 2.0
ROUNDING_S = Fraction(1, 1000)
"""A frame may be this early, because listed times and container ticks are rounded."""


@dataclass(frozen=True, slots=True)
class Original:
    """Facts about the source for the records; nothing is computed from them later."""

    container: str
    codec: str
    pixel_format: str
    width: int
    height: int
    rotation: int
    """Degrees counter-clockwise by which a player turns the picture."""
    sample_aspect: float
    hdr: bool
    """Whether the transfer is PQ or HLG; it is not tone-mapped."""
    bytes: int


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    frame: VideoFrame
    time_s: Fraction
    """Time since the first frame of the file."""


class TimesContradictOrder(Exception):  # noqa: N818 - the caller reads it again
    """Frames arrive in order of presentation, but their times do not rise (B-frames in AVI)."""


class _Source:
    """A file that remembers its read errors, which demuxers mistake for its end or for damage."""

    def __init__(self, path: str) -> None:
        # FFmpeg gets an open file, because a name may not be UTF-8 or may look like a protocol.
        self._path, self._file = path, open(path, "rb", buffering=0)  # noqa: SIM115
        self._error: OSError | None = None
        self.seek, self.tell = self._file.seek, self._file.tell

    def read(self, size: int) -> bytes:
        try:
            return self._file.read(size) or b""
        except OSError as error:
            self._error = error
            return b""

    def close(self) -> None:
        """Close the file. Raises `Rejection` or `MachineTrouble` if a read failed."""
        self._file.close()
        if self._error is not None:
            raise Rejection(*verdict(self._error, self._path))


@contextmanager
def open_video(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a container and its best video stream with one thread and no error concealment.

    Raises `Rejection`: missing, unreadable, empty, not_video, no_video, unsupported_codec; and
    `MachineTrouble` when the machine failed at any read inside the block.
    """
    try:
        found = os.stat(path)
        if stat.S_ISREG(found.st_mode) and found.st_size == 0:
            raise Rejection("empty", "0 bytes")
        source = _Source(path)
    except OSError as error:
        raise Rejection(*verdict(error, path)) from None
    options = {"format_whitelist": _CONTAINERS}
    if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES:
        options["pattern_type"] = "none"
    with closing(source), _best_stream(source, options) as opened:
        yield opened


@contextmanager
def open_video_bytes(content: bytes) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the content of a video file as `open_video` opens the file."""
    if not content:
        raise Rejection("empty", "0 bytes")
    with _best_stream(io.BytesIO(content), {"format_whitelist": _CONTAINERS}) as opened:
        yield opened


@contextmanager
def _best_stream(
    file: object, options: dict[str, str]
) -> Iterator[tuple[InputContainer, VideoStream]]:
    with _container(file, options) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise Rejection("no_video", f"{container.format.name} without a video stream")
        if not isinstance(stream, VideoStream) or stream.codec_context is None:
            raise Rejection("unsupported_codec", "no decoder for the video stream")
        stream.thread_type = "NONE"
        stream.codec_context.options = {"err_detect": "explode"}
        yield container, stream


def _container(file: object, options: dict[str, str]) -> InputContainer:
    try:
        return av.open(file, "r", options=options, metadata_errors="ignore")
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
        rotation=_rotation(first),
        sample_aspect=float(aspect) if aspect else 1.0,
        hdr=first.color_trc in (_SMPTE2084, _ARIB_STD_B67),
        bytes=container.size,
    )


def _rotation(frame: VideoFrame) -> int:
    try:
        return frame.rotation
    except ValueError:  # a matrix that flattens the picture has no rotation
        return 0


def frame_step(stream: VideoStream) -> Fraction:
    """Seconds between frames according to the header; 1/25 when it does not say."""
    rate = stream.average_rate or stream.guessed_rate or Fraction(0)
    return Fraction(1) / rate if rate > 0 else Fraction(1, 25)


def frames(
    container: InputContainer,
    stream: VideoStream,
    *,
    start_s: float = 0.0,
    seek: bool = True,
    constant_rate: bool = False,
) -> Iterator[DecodedFrame]:
    """Yield frames from `start_s` on, in order of presentation.

    `constant_rate` counts frames instead of reading their times, and therefore never seeks. Raises
    `TimesContradictOrder` when it is required, and `Rejection`: `corrupt` at the first damaged
    packet or frame, and `resolution_change`.
    """
    origin = Fraction(stream.start_time or 0) * (stream.time_base or 1)
    # AVI times count from the first decoded frame, which precedes the first shown with B-frames.
    from_first = container.format.name == "avi"
    seeks = seek and not constant_rate and not from_first and start_s > _PREROLL_S
    if seeks:
        target = float(origin) + start_s - _PREROLL_S
        try:
            container.seek(int(target / (stream.time_base or 1)), stream=stream, backward=True)
        except av.FFmpegError as error:
            raise Rejection("corrupt", f"no way to {start_s:g} s: {_message(error)}") from None
    step = frame_step(stream)
    shape: tuple[int, int] | None = None
    previous: Fraction | None = None
    for number, frame in enumerate(_decode(container, stream, from_start=not seeks)):
        if shape is None:
            shape = (frame.width, frame.height)
        elif shape != (frame.width, frame.height):
            before, after = ("{}x{}".format(*size) for size in (shape, (frame.width, frame.height)))
            raise Rejection("resolution_change", f"from {before} to {after} at frame {number}")
        if constant_rate:
            time = number * step
        elif frame.pts is None or frame.time_base is None:
            time = previous + step if previous is not None else Fraction(0)
        else:
            if from_first and previous is None:
                origin = frame.pts * frame.time_base
            time = frame.pts * frame.time_base - origin
        if previous is not None and time < previous:
            raise TimesContradictOrder
        previous = time
        if time >= Fraction(start_s) - ROUNDING_S:
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
                # Decoders silently drop frames whose references are missing.
                raise Rejection("corrupt", "does not start with a keyframe")
            starts = False
            for frame in packet.decode():
                count += 1
                yield frame
    except MemoryError:
        raise Rejection("memory", f"more than the memory cap after {count} frames") from None
    except av.FFmpegError as error:
        raise Rejection("corrupt", f"after {count} frames: {_message(error)}") from None


def _message(error: av.FFmpegError) -> str:
    return (error.strerror or type(error).__name__).strip()
