"""Draws strips of frames of one clip as JPEG."""

from __future__ import annotations

import io

import av
import numpy as np
import numpy.typing as npt
from av.codec.context import CodecContext
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, VideoReformatter

from data_prep.video.picture import rgb_pixels
from data_prep.video.read import read_selected

STRIP_FRAMES = 5
_HEIGHT = 96


def foreign_strip_jpeg(video: bytes, frames: int) -> bytes:
    """Do what `strip_jpeg` does for a video of `frames` frames that another tool has written.

    Raises `UnreadableVideoError` when the video has changed since it was probed.
    """
    chosen = np.linspace(0, frames - 1, STRIP_FRAMES).round().astype(int).tolist()
    numbers = sorted(set(chosen))
    pixels = dict(zip(numbers, read_selected(video, numbers), strict=True))
    height, width, _ = pixels[0].shape
    width = max(2, round(width * _HEIGHT / height / 2) * 2)
    small = {
        number: VideoFrame.from_ndarray(picture, format="rgb24")
        .reformat(width=width, height=_HEIGHT)
        .to_ndarray()
        for number, picture in pixels.items()
    }
    return _jpeg(np.concatenate([small[number] for number in chosen], axis=1))


def strip_jpeg(video: bytes) -> bytes:
    """Encode `STRIP_FRAMES` frames from first to last, side by side and 96 pixels high.

    `video` is a clip that this package wrote, so no damage is expected.
    """
    with av.open(io.BytesIO(video), "r") as container:
        frames = list(container.decode(container.streams.video[0]))
    chosen = np.linspace(0, len(frames) - 1, STRIP_FRAMES).round().astype(int)
    width = max(2, round(frames[0].width * _HEIGHT / frames[0].height / 2) * 2)
    scaler, rgb = VideoReformatter(), VideoReformatter()
    pictures = [
        rgb_pixels(scaler.reformat(frames[number], width=width, height=_HEIGHT), rgb)
        for number in chosen
    ]
    return _jpeg(np.concatenate(pictures, axis=1))


def _jpeg(image: npt.NDArray[np.uint8]) -> bytes:
    encoder = CodecContext.create("mjpeg", "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.height, encoder.width = image.shape[:2]
    encoder.pix_fmt = "yuvj420p"
    encoder.qmin = encoder.qmax = 4
    picture = VideoFrame.from_ndarray(image, format="rgb24")
    # JPEG uses BT.601 in full range.
    frame = picture.reformat(format="yuvj420p", dst_colorspace=Colorspace.ITU601)
    packets = [*encoder.encode(frame), *encoder.encode(None)]
    return b"".join(bytes(packet) for packet in packets)
