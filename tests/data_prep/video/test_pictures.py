"""Still pictures of every kind become clips of one frame of the right colours, or are left out."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from data_prep.video.clip import ClipRequest, EncodeSettings, RejectedClip
from data_prep.video.prepare import prepare_clip
from pipeline.data.decode import decode_frames

COLOURS = np.array([[200, 60, 40], [40, 180, 60], [50, 70, 210], [230, 220, 60]], np.uint8)
PIXELS = COLOURS.reshape(2, 2, 3).repeat(24, 0).repeat(32, 1)  # 64 x 48, one colour a quarter
PICTURE = Image.fromarray(PIXELS)
GREY = np.asarray(PICTURE.convert("L"))
WITHIN = 6


def saved(path: Path, image: Image.Image, **options: object) -> None:
    image.save(path, **options)


def with_alpha() -> Image.Image:
    pixels = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)])
    pixels[:24, :32, 3], pixels[24:, :, 3] = 0, 128
    return Image.fromarray(pixels)


def png_of_16_bits(path: Path) -> None:
    """Pillow writes no RGB of 16 bits."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    height, width, _ = PIXELS.shape
    lines = (PIXELS.astype(">u2") * 257).astype(">u2")
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def without_end(path: Path, keep: float) -> None:
    saved(path, PICTURE)
    content = path.read_bytes()
    path.write_bytes(content[: round(len(content) * keep)])


def png_named_jpeg(path: Path) -> None:
    """One of the training pictures of ImageNet-1K is such a file."""
    saved(path.with_suffix(".png"), PICTURE)
    path.with_suffix(".png").rename(path)


MADE: dict[str, Callable[[Path], None]] = {
    "baseline.JPEG": lambda path: saved(path, PICTURE, quality=95),
    "progressive.jpg": lambda path: saved(path, PICTURE, quality=95, progressive=True),
    "no chroma subsampling.jpg": lambda path: saved(path, PICTURE, quality=95, subsampling=0),
    "cmyk.jpg": lambda path: saved(path, PICTURE.convert("CMYK"), quality=95),
    "named by mistake.JPEG": png_named_jpeg,
    "alpha.png": lambda path: saved(path, with_alpha()),
    "palette.png": lambda path: saved(path, PICTURE.quantize(8)),
    "16 bits.png": png_of_16_bits,
    "bitmap.bmp": lambda path: saved(path, PICTURE),
    "lossy.webp": lambda path: saved(path, PICTURE, quality=95),
}
GREYS: dict[str, Callable[[Path], None]] = {
    "grey.jpg": lambda path: saved(path, PICTURE.convert("L"), quality=95),
    "grey with alpha.png": lambda path: saved(path, with_alpha().convert("LA")),
    "grey of 16 bits.png": lambda path: saved(path, Image.fromarray(GREY.astype(np.uint16) * 257)),
}
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "two thirds.jpg": (lambda path: without_end(path, 0.67), "corrupt"),
    "two thirds.png": (lambda path: without_end(path, 0.67), "corrupt"),
    "two thirds.webp": (lambda path: without_end(path, 0.67), "corrupt"),
    "empty.jpg": (lambda path: path.write_bytes(b"") and None, "empty"),
    "a web page.jpg": (lambda path: path.write_bytes(b"<html>404</html>") and None, "not_video"),
}


def corners(path: Path) -> npt.NDArray[np.int64]:
    """The colours in the middle of the quarters of the stored picture: (4, 3)."""
    clip = prepare_clip(ClipRequest(str(path), 0.0, None, EncodeSettings(crf=4)))
    assert not isinstance(clip, RejectedClip), clip
    assert (clip.frames, clip.width, clip.height) == (1, 64, 48)
    frame = decode_frames(clip.video, np.array([0]), clip.keyframes)[0]
    return frame[12::24, 16::32].reshape(4, 3).astype(np.int64)


@pytest.mark.parametrize("name", MADE)
def test_colours_are_kept(tmp_path: Path, name: str) -> None:
    """Transparency is ignored, as Pillow's conversion to RGB ignores it."""
    MADE[name](tmp_path / name)
    np.testing.assert_allclose(corners(tmp_path / name), COLOURS, atol=WITHIN)


@pytest.mark.parametrize("name", GREYS)
def test_grey_becomes_three_equal_channels(tmp_path: Path, name: str) -> None:
    GREYS[name](tmp_path / name)
    expected = GREY[12::24, 16::32].reshape(4, 1).repeat(3, 1)
    np.testing.assert_allclose(corners(tmp_path / name), expected, atol=WITHIN)


@pytest.mark.parametrize("name", REFUSED)
def test_broken_pictures_are_left_out_with_a_reason(tmp_path: Path, name: str) -> None:
    make, code = REFUSED[name]
    make(tmp_path / name)
    clip = prepare_clip(ClipRequest(str(tmp_path / name), 0.0, None, EncodeSettings()))
    assert isinstance(clip, RejectedClip)
    assert clip.code == code
