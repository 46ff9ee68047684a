"""One source file -> one clip in the normal form, or the reason why not."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from fractions import Fraction

import av
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from data_prep.annotation import IMAGE_SUFFIXES
from data_prep.video.clip import ClipRequest, EncodeSettings, PreparedClip, RejectedClip
from data_prep.video.decode import (
    DecodedFrame,
    Original,
    Rejection,
    describe,
    display_filters,
    frames,
    open_video,
)
from data_prep.video.h264 import BT601, LIMITED_RANGE, TIME_BASE, EncodedClip, encode_clip
from data_prep.video.suitable import copy_if_suitable

_MIN_SIDE = 16
# Exact rounding, so that equal pixels give equal bytes on every CPU.
_SCALER = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT


def prepare_clip(request: ClipRequest) -> PreparedClip | RejectedClip:
    """Decode strictly, turn upright, scale, encode; or keep what is in the normal form already."""
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


def _fingerprint(path: str) -> tuple[int, int, int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _prepare(request: ClipRequest) -> PreparedClip:
    kept = copy_if_suitable(request) if request.settings.copy_suitable else None
    if kept is not None:
        return kept
    if request.trim_start_s <= 0:
        return _encode(request, start_s=0.0)
    try:
        return _encode(request, start_s=request.trim_start_s)
    except Rejection as rejection:
        if rejection.code != "corrupt":
            raise
        # The point a seek lands on may not be decodable on its own: read from the beginning.
        return _encode(request, start_s=request.trim_start_s, seek=False)


def _encode(request: ClipRequest, *, start_s: float, seek: bool = True) -> PreparedClip:
    settings = request.settings
    with open_video(request.path) as (container, stream):
        decoded = _trimmed(
            frames(container, stream, start_s=start_s, seek=seek), request.trim_end_s
        )
        first = next(decoded, None)
        if first is None:
            raise Rejection("no_frames", _empty_detail(request))
        original = describe(container, stream, first.frame)
        is_image = os.path.splitext(request.path)[1].lower() in IMAGE_SUFFIXES
        timeline = _Timeline(settings, 1 if is_image else settings.min_frames)
        shaper = _Shaper(first.frame, original, settings)
        nominal = float(stream.average_rate or 1)
        nominal = nominal if 0.01 <= nominal <= 1000 else 25.0
        try:
            clip = encode_clip(
                ((shaper(item.frame), timeline(item)) for item in _restore(first, decoded)),
                width=shaper.width,
                height=shaper.height,
                fps=nominal,
                crf=settings.crf,
            )
        except MemoryError:  # FFmpeg's own is also an FFmpegError
            raise
        except av.FFmpegError as error:
            raise Rejection("encode", str(error)) from None
        timeline.check_length()
    return _prepared(clip, timeline.fps(nominal), shaper, original)


def _empty_detail(request: ClipRequest) -> str:
    if request.trim_start_s <= 0:
        return "a video stream without frames"
    end = "" if request.trim_end_s is None else f"{request.trim_end_s:g}"
    return f"none between {request.trim_start_s:g} and {end} s; is the file a cut clip already?"


def _prepared(clip: EncodedClip, fps: float, shaper: _Shaper, original: Original) -> PreparedClip:
    return PreparedClip(
        video=clip.video,
        sha256=hashlib.sha256(clip.video).hexdigest(),
        frames=clip.frames,
        fps=fps,
        width=shaper.width,
        height=shaper.height,
        duration_s=clip.frames / fps,
        keyframes=clip.keyframes,
        copied=False,
        original=original,
    )


def _restore(first: DecodedFrame, rest: Iterator[DecodedFrame]) -> Iterator[DecodedFrame]:
    yield first
    yield from rest


def _trimmed(decoded: Iterator[DecodedFrame], end_s: float | None) -> Iterator[DecodedFrame]:
    for item in decoded:
        if end_s is not None and item.time_s >= Fraction(end_s):
            return
        yield item


class _Timeline:
    """Times in `TIME_BASE` units from 0, strictly rising, and the bounds on their number."""

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
        """Mean rate over the clip; `nominal` when the times do not tell."""
        if self._last <= 0:
            return nominal
        return round((self._count - 1) / float(self._last), 6)


class _Shaper:
    """Decoded frames -> upright yuv420p frames of the target size."""

    def __init__(self, first: VideoFrame, original: Original, settings: EncodeSettings) -> None:
        source_width: float = first.width
        if settings.apply_sample_aspect:
            source_width *= original.sample_aspect
        scale = min(1.0, settings.short_side / min(source_width, first.height))
        self._scaled = (_even(source_width * scale), _even(first.height * scale))
        if min(self._scaled) < _MIN_SIDE:
            raise Rejection("too_small", f"{first.width}x{first.height} pixels")
        self._reformatter = VideoReformatter()
        filters = display_filters(first)
        self._turn = _turning_graph(*self._scaled, filters) if filters else None
        swapped = any(name == "transpose" for name, _ in filters)
        self.width, self.height = self._scaled[::-1] if swapped else self._scaled

    def __call__(self, frame: VideoFrame) -> VideoFrame:
        width, height = self._scaled
        shaped = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="yuv420p",
            interpolation=_SCALER,
            dst_colorspace=BT601,
            dst_color_range=LIMITED_RANGE,
            threads=1,
        )
        if self._turn is None:
            return shaped
        self._turn.vpush(shaped)
        return self._turn.vpull()


def _even(length: float) -> int:
    """The even number below; a rounding error must not cost two pixels."""
    return 2 * math.floor(length / 2 + 1e-6)


def _turning_graph(width: int, height: int, filters: list[tuple[str, str | None]]) -> Graph:
    graph = Graph()
    graph.threads = 1
    nodes = [
        graph.add(
            "buffer",
            f"video_size={width}x{height}:pix_fmt=yuv420p:time_base={TIME_BASE}"
            ":colorspace=smpte170m:range=tv",
        )
    ]
    nodes += [graph.add(name, argument) for name, argument in filters]
    graph.link_nodes(*nodes, graph.add("buffersink")).configure()
    return graph
