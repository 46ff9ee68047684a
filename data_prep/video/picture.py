"""Decides the orientation, size and colours of a frame.

Sharding, prediction, verification, the report and the loader all use this module, so they show the
same picture. A stored picture is upright, of even size, and 8-bit yuv420p in the BT.601 matrix and
limited range, whatever the tags of its source.
"""

from __future__ import annotations

import math
import struct

import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import SideData, Type
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from data_prep.video.rejection import Rejection

PICTURE_VERSION = 2
"""Increases whenever equal sources give other pictures; see `data_prep.sealed.affected`."""

BT601, LIMITED_RANGE = 6, 1  # AVCOL_SPC_SMPTE170M, AVCOL_RANGE_MPEG: the encoder's tags
SHORT_SIDE = 256
MIN_SIDE = 16
_UNSPECIFIED = 0
BT601_TAGS = frozenset({2, 5, 6})  # unspecified, BT.470BG, SMPTE 170M
# Maps the tag of a frame (AVCOL_SPC) to the scaler's name of its matrix, which has another number.
# Frames that are untagged, reserved, or "RGB" on luma and chroma planes are BT.601, as in FFmpeg.
_MATRICES = {
    0: Colorspace.ITU601,
    1: Colorspace.ITU709,
    2: Colorspace.ITU601,
    3: Colorspace.ITU601,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
}
# Exact rounding makes equal pixels give equal bytes on every CPU. Without full interpolation of
# chroma, a change of matrix makes pictures four levels too dark.
_SCALER = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
    | Interpolation.FULL_CHR_H_INT
)
# PyAV 18 can only list all side data at once: an unknown type (EXIF, views of MV-HEVC) raises, and
# an ICC profile crashes the process. Therefore all other types are removed first. FFmpeg has fewer
# than 64 types.
_OTHER_TYPES = tuple(sorted(set(range(64)) - {Type.DISPLAYMATRIX.value}))

Turn = list[tuple[str, str | None]]
"""A list of FFmpeg filters (name, argument)."""


class Picture:
    """Converts the frames of one source to stored pictures of `width` x `height`.

    The first frame decides size and orientation. The short side becomes at most `short_side`, and
    nothing is enlarged. `sample_aspect` stretches pixels that are not square. Raises `Rejection`:
    too_small, unsupported_colours.
    """

    def __init__(
        self, first: VideoFrame, *, short_side: int = SHORT_SIDE, sample_aspect: float = 1.0
    ) -> None:
        source_width = first.width * sample_aspect
        scale = min(1.0, short_side / min(source_width, first.height))
        self._scaled = (_even(source_width * scale), _even(first.height * scale))
        if min(self._scaled) < MIN_SIDE:
            raise Rejection("too_small", f"{first.width}x{first.height} pixels")
        self._reformatter = VideoReformatter()
        turn = turn_upright(first)
        self._graph = _turning_graph(*self._scaled, turn) if turn else None
        swapped = any(name == "transpose" for name, _ in turn)
        self.width, self.height = self._scaled[::-1] if swapped else self._scaled

    def __call__(self, frame: VideoFrame) -> VideoFrame:
        width, height = self._scaled
        shaped = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="yuv420p",
            interpolation=_SCALER,
            src_colorspace=_matrix(frame),
            dst_colorspace=Colorspace.ITU601,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        if self._graph is None:
            return shaped
        self._graph.vpush(shaped)
        return self._graph.vpull()


def rgb_pixels(frame: VideoFrame, reformatter: VideoReformatter) -> NDArray[np.uint8]:
    """The RGB of a stored picture: (H, W, 3) uint8, a view of memory whose rows may be padded."""
    shown = reformatter.reformat(frame, format="rgb24", threads=1)
    # A stored picture is tagged BT.601 or not at all, which the scaler treats alike.
    (plane,) = shown.planes
    pixels: NDArray[np.uint8] = np.ndarray(
        (shown.height, shown.width, 3), np.uint8, memoryview(plane), 0, (plane.line_size, 3, 1)
    )
    return pixels


def is_stored_picture(frame: VideoFrame) -> bool:
    """Whether the frame can be stored without a change of orientation, matrix or range."""
    return (
        not turn_upright(frame)
        and frame.colorspace in BT601_TAGS
        and frame.color_range in (_UNSPECIFIED, LIMITED_RANGE)
    )


def turn_upright(frame: VideoFrame) -> Turn:
    """The filters that apply the display matrix, which in FFmpeg includes EXIF orientation."""
    data = _display_matrix(frame)
    if data is None:
        return []
    a, b, _, c, d, *_ = struct.unpack("<9i", bytes(data))
    if abs(b) > abs(a):
        # x and y are swapped, in one of the four ways of FFmpeg's transpose.
        if b > 0:
            return [("transpose", "clock" if c < 0 else "cclock_flip")]
        return [("transpose", "cclock" if c > 0 else "clock_flip")]
    return [(name, None) for name, sign in (("hflip", a), ("vflip", d)) if sign < 0]


def _display_matrix(frame: VideoFrame) -> SideData | None:
    graph = Graph()
    graph.threads = 1
    nodes = [graph.add("buffer", _source(frame.width, frame.height, frame.format.name))]
    nodes += [graph.add("sidedata", f"mode=delete:type={number}") for number in _OTHER_TYPES]
    graph.link_nodes(*nodes, graph.add("buffersink")).configure()
    graph.vpush(frame)
    found = graph.vpull().side_data.get("DISPLAYMATRIX")
    return found if isinstance(found, SideData) else None


def _turning_graph(width: int, height: int, turn: Turn) -> Graph:
    graph = Graph()
    graph.threads = 1
    source = _source(width, height, "yuv420p") + ":colorspace=smpte170m:range=tv"
    nodes = [graph.add("buffer", source)]
    nodes += [graph.add(name, argument) for name, argument in turn]
    graph.link_nodes(*nodes, graph.add("buffersink")).configure()
    return graph


def _source(width: int, height: int, pixel_format: str) -> str:
    return f"video_size={width}x{height}:pix_fmt={pixel_format}:time_base=1/90000"


def _matrix(frame: VideoFrame) -> Colorspace | None:
    """The scaler's name of the frame's matrix; None when the pixels are RGB already."""
    if frame.format.is_rgb or frame.format.has_palette:
        return None
    try:
        return _MATRICES[frame.colorspace]
    except KeyError:
        detail = f"colour matrix {frame.colorspace} of ITU-T H.273 cannot be converted"
        raise Rejection("unsupported_colours", detail) from None


def _even(length: float) -> int:
    """Round down to an even number, but do not let a rounding error cost two pixels."""
    return 2 * math.floor(length / 2 + 1e-6)
