"""Turns a source file into a clip in the normal form, or gives the reason why not."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction

import av
from av.video.stream import VideoStream

from data_prep.annotation import IMAGE_SUFFIXES
from data_prep.errors import MachineTrouble, is_of_machine, verdict
from data_prep.video.clip import ClipRequest, EncodeSettings, PreparedClip, RejectedClip
from data_prep.video.decode import (
    ROUNDING_S,
    DecodedFrame,
    Original,
    TimesContradictOrder,
    describe,
    frame_step,
    frames,
    open_video,
)
from data_prep.video.h264 import TIME_BASE, EncodedClip, encode_clip
from data_prep.video.picture import Picture
from data_prep.video.rejection import Rejection
from data_prep.video.suitable import copy_if_suitable

_PAST_END_S = 0.5
"""A listing that rounds its times may end a clip this much after the end of its file."""
_REORDERED_FRAMES = 17
"""More frames than any decoder holds back, so that times out of order show."""


def prepare_clip(request: ClipRequest) -> PreparedClip | RejectedClip:
    """Decode strictly, turn upright, scale and encode, or keep a file that has the normal form."""
    try:
        before = _fingerprint(request.path)
        clip = _prepare(request)
        if _fingerprint(request.path) != before:
            raise Rejection("changed", "the file changed while it was read")
    except Rejection as rejection:
        return RejectedClip(rejection.code, rejection.detail)
    except MemoryError:
        return RejectedClip("memory", "more than the memory cap")
    return clip


def _fingerprint(path: str) -> tuple[int, int, int]:
    try:
        stat = os.stat(path)
    except OSError as error:
        raise Rejection(*verdict(error, path)) from None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _prepare(request: ClipRequest) -> PreparedClip:
    kept = copy_if_suitable(request) if request.settings.copy_suitable else None
    if kept is not None:
        return kept
    seek, constant_rate = request.trim_start_s > 0, False
    while True:
        try:
            return _encode(request, seek=seek, constant_rate=constant_rate)
        except TimesContradictOrder:
            seek, constant_rate = False, True
        except Rejection as rejection:
            if not seek or rejection.code not in ("corrupt", "past_end"):
                raise
            # The point where a seek lands may not be decodable alone, so read from the start.
            seek = False


def _encode(request: ClipRequest, *, seek: bool, constant_rate: bool) -> PreparedClip:
    settings = request.settings
    with open_video(request.path) as (container, stream):
        decoded = _trimmed(
            frames(
                container,
                stream,
                start_s=request.trim_start_s,
                seek=seek,
                constant_rate=constant_rate,
            ),
            request,
            stream,
        )
        first = next(decoded, None)
        if first is None:
            raise Rejection("no_frames", _empty_detail(request))
        original = describe(container, stream, first.frame)
        is_image = os.path.splitext(request.path)[1].lower() in IMAGE_SUFFIXES
        timeline = _Timeline(settings, 1 if is_image else settings.min_frames)
        aspect = original.sample_aspect if settings.apply_sample_aspect else 1.0
        picture = Picture(first.frame, short_side=settings.short_side, sample_aspect=aspect)
        nominal = float(1 / frame_step(stream))
        nominal = nominal if 0.01 <= nominal <= 1000 else 25.0
        pictures = (
            (picture(item.frame), timeline(item)) for item in itertools.chain([first], decoded)
        )
        try:
            clip = encode_clip(
                pictures,
                width=picture.width,
                height=picture.height,
                fps=nominal,
                crf=settings.crf,
            )
        except MemoryError:  # FFmpeg's MemoryError is also an FFmpegError
            raise
        except (OSError, av.FFmpegError) as error:
            if isinstance(error, OSError) and is_of_machine(error):
                detail = f"{request.path!r}: its clip cannot be kept ({error})"
                raise MachineTrouble(detail) from None
            raise Rejection("encode", str(error)) from None
        timeline.check_length()
    return _prepared(clip, timeline.fps(nominal), picture, original)


def _empty_detail(request: ClipRequest) -> str:
    if request.trim_end_s is None:
        return "a video stream without frames"
    return f"none between {request.trim_start_s:g} and {request.trim_end_s:g} s"


def _prepared(clip: EncodedClip, fps: float, picture: Picture, original: Original) -> PreparedClip:
    return PreparedClip(
        video=clip.video,
        sha256=hashlib.sha256(clip.video).hexdigest(),
        frames=clip.frames,
        fps=fps,
        width=picture.width,
        height=picture.height,
        duration_s=clip.frames / fps,
        keyframes=clip.keyframes,
        copied=False,
        original=original,
    )


def _trimmed(
    decoded: Iterator[DecodedFrame], request: ClipRequest, stream: VideoStream
) -> Iterator[DecodedFrame]:
    """Yield the frames of the interval. Raises `Rejection` `past_end` if the file ends early."""
    end_s = request.trim_end_s
    reached: Fraction | None = None
    for item in decoded:
        if end_s is not None and item.time_s >= Fraction(end_s) - ROUNDING_S:
            _look_ahead(decoded, stream)
            return
        yield item
        shown = Fraction(item.frame.duration or 0) * (item.frame.time_base or 0)
        reached = item.time_s + max(shown, frame_step(stream))
    if reached is None and request.trim_start_s > 0:
        detail = f"it ends before the interval begins at {request.trim_start_s:g} s"
    elif reached is not None and end_s is not None and end_s - reached > _PAST_END_S:
        interval = f"{request.trim_start_s:g} to {end_s:g} s"
        detail = f"it ends at {float(reached):.2f} s, the interval is {interval}"
    else:
        return
    raise Rejection("past_end", f"{detail}; is the file a clip that is cut already?")


def _look_ahead(decoded: Iterator[DecodedFrame], stream: VideoStream) -> None:
    """Raise `TimesContradictOrder` if the frame that ends the interval came too early."""
    if stream.codec_context.has_b_frames:
        with suppress(Rejection):  # damage after the interval does not matter
            for _ in itertools.islice(decoded, _REORDERED_FRAMES):
                pass


class _Timeline:
    """Makes strictly rising times from 0 in units of `TIME_BASE`, and bounds their number."""

    def __init__(self, settings: EncodeSettings, min_frames: int) -> None:
        self._min, self._max = min_frames, settings.max_frames
        self._first: Fraction | None = None
        self._last = Fraction(0)
        self._ticks, self._count = -1, 0

    def __call__(self, item: DecodedFrame) -> int:
        if self._first is None:
            self._first = item.time_s
        self._count += 1
        if self._count > self._max:
            raise Rejection("too_long", f"more than {self._max} frames")
        self._last = item.time_s - self._first
        self._ticks = max(self._ticks + 1, round(self._last / TIME_BASE))
        return self._ticks

    def check_length(self) -> None:
        if self._count < self._min:
            raise Rejection("too_short", f"{self._count} frames, at least {self._min} wanted")

    def fps(self, nominal: float) -> float:
        """The mean frame rate of the clip; `nominal` when the times do not give one."""
        if self._last <= 0:
            return nominal
        return round((self._count - 1) / float(self._last), 6)
