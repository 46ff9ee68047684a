"""Examines a video that stays as it is: decodes all of it and describes the pictures it gives."""

from __future__ import annotations

import hashlib

from data_prep.errors import verdict
from data_prep.video.clip import EncodeSettings, PreparedClip, ProbeRequest, RejectedClip
from data_prep.video.decode import describe, frame_step, frames, open_video_bytes
from data_prep.video.picture import Picture
from data_prep.video.rejection import Rejection


def probe_clip(request: ProbeRequest) -> PreparedClip | RejectedClip:
    """Decode every frame strictly; return the facts about the video, or the reason why not.

    Width and height are those of the pictures that training makes of it.
    """
    try:
        return examine(_content(request), request.settings)
    except Rejection as rejection:
        return RejectedClip(rejection.code, rejection.detail)
    except MemoryError:
        return RejectedClip("memory", "more than the memory cap")


def examine(content: bytes, settings: EncodeSettings) -> PreparedClip:
    """Do what `probe_clip` does with the content of a file. Raises `Rejection`."""
    picture: Picture | None = None
    count, times = 0, []
    with open_video_bytes(content) as (container, stream):
        nominal = float(1 / frame_step(stream))
        # Frames are numbered in their order, as the loader numbers them, whatever their times say.
        for item in frames(container, stream, constant_rate=True):
            if picture is None:
                picture = Picture(item.frame, short_side=settings.short_side)
                original = describe(container, stream, item.frame)
            picture(item.frame)
            if item.frame.time is not None:
                times.append(item.frame.time)
            count += 1
            if count > settings.max_frames:
                raise Rejection("too_long", f"more than {settings.max_frames} frames")
    if picture is None:
        raise Rejection("no_frames", "a video stream without frames")
    if count < settings.min_frames:
        detail = f"{count} frames, at least {settings.min_frames} wanted"
        raise Rejection("too_short", detail)
    fps = _rate(count, times, nominal)
    return PreparedClip(
        video=b"",
        sha256=hashlib.sha256(content).hexdigest(),
        frames=count,
        fps=fps,
        width=picture.width,
        height=picture.height,
        duration_s=count / fps,
        keyframes=(0,),
        copied=True,
        original=original,
    )


def _content(request: ProbeRequest) -> bytes:
    try:
        with open(request.path, "rb") as file:
            file.seek(request.offset)
            content = file.read(request.size)
    except OSError as error:
        raise Rejection(*verdict(error, request.path)) from None
    if len(content) != request.size:
        raise Rejection("changed", "the tar became shorter while it was read")
    return content


def _rate(count: int, times: list[float], nominal: float) -> float:
    """The mean frame rate, from the times where every frame has one."""
    span = max(times) - min(times) if len(times) == count else 0.0
    rate = (count - 1) / span if span > 0 else nominal
    return round(rate, 6) if 0.01 <= rate <= 1000 else 25.0
