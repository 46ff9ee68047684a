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

STRIP_FRAMES = 5
_HEIGHT = 96


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
