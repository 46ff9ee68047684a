"""One colour goes in and comes out of shard, loader, cache, report and prediction unchanged.

The samples are computed here from the matrices of the standards, not by FFmpeg.
"""

from __future__ import annotations

import io
import itertools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame

from data_prep.options import ShardConfig
from data_prep.sealed.contact_sheet import strip_jpeg
from data_prep.shard import shard
from pipeline.data.decode import decode_frames
from pipeline.data.ffcv.cache import CacheOptions, StoredClips
from pipeline.data.shards import Shards, open_shards
from pipeline.predict import decode_all

WITHIN = 4
COLOURS = {"teal": (64, 192, 160), "rust": (200, 70, 40)}
# name -> (tag by ITU-T H.273, weight of red, weight of blue)
MATRICES = {
    "bt601": (6, 0.299, 0.114),
    "bt470bg": (5, 0.299, 0.114),
    "bt709": (1, 0.2126, 0.0722),
    "bt2020": (9, 0.2627, 0.0593),
    "smpte240m": (7, 0.212, 0.087),
    "fcc": (4, 0.30, 0.11),
    "untagged": (2, 0.299, 0.114),
}
RANGES = {"limited": 1, "full": 2}
FORMATS = {"yuv420p": 8, "yuv422p": 8, "yuv444p": 8, "yuv420p10le": 10}


def _samples(colour: tuple[int, ...], red: float, blue: float, full: bool, bits: int) -> list[int]:
    """Y, Cb and Cr of an RGB colour of 8 bits."""
    r, g, b = (value / 255 for value in colour)
    y = red * r + (1 - red - blue) * g + blue * b
    cb, cr = (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)
    top, step = 2**bits - 1, 2 ** (bits - 8)
    if full:
        return [round(top * y), round(top * cb + 128 * step), round(top * cr + 128 * step)]
    return [round((219 * y + 16) * step), *(round((224 * c + 128) * step) for c in (cb, cr))]


def _write(path: Path, frame: VideoFrame, tag: int | None, colour_range: int) -> None:
    with av.open(str(path), "w", format="matroska") as output:
        stream = output.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, frame.format.name
        if tag is not None:
            stream.codec_context.colorspace = frame.colorspace = tag
            stream.codec_context.color_range = frame.color_range = colour_range
        for number in range(3):
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def _solid(pixel_format: str, samples: list[int], size: tuple[int, int]) -> VideoFrame:
    frame = VideoFrame(*size, pixel_format)
    for plane, value in zip(frame.planes, samples, strict=True):
        dtype = np.uint8 if FORMATS[pixel_format] == 8 else "<u2"
        plane.update(np.full(plane.buffer_size // np.dtype(dtype).itemsize, value, dtype))
    return frame


def _write_all(root: Path) -> None:
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        kinds = itertools.product(MATRICES.items(), RANGES.items(), FORMATS.items())
        for (matrix, (tag, red, blue)), (kind, number), (pixels, bits) in kinds:
            samples = _samples(colour, red, blue, kind == "full", bits)
            frame = _solid(pixels, samples, (64, 48))
            _write(root / name / f"{matrix} {kind} {pixels}.mkv", frame, tag, number)
        samples = _samples(colour, 0.299, 0.114, False, 8)
        for size in ((320, 240), (1280, 720)):
            path = root / name / f"nothing said {size[1]}.mkv"
            _write(path, _solid("yuv420p", samples, size), None, 0)
        pixels = np.tile(np.uint8(colour), (48, 64, 1))
        rgb = VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="bgr0")
        _write(root / name / "rgb.mkv", rgb, None, 0)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("colours")
    _write_all(root)
    return root


@pytest.fixture(scope="module")
def shards(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    out = str(tmp_path_factory.mktemp("shards"))
    config = ShardConfig(format="folder", videos=videos, out=out, decoders=2)
    assert shard(config, show_progress=False).splits == {"train": 2 * (7 * 2 * 4 + 3)}
    return open_shards(out, "train")


def _off(pixels: np.ndarray, colour: tuple[int, ...]) -> float:
    return float(np.abs(pixels.astype(float) - colour).max())


def test_shards_loader_cache_and_report_keep_colours(shards: Shards) -> None:
    expected = [COLOURS[shards.classes[label]] for label in shards.labels]
    cached = StoredClips(shards, CacheOptions(frames=2, size=32, quality=0))
    for number, sample in enumerate(shards.samples(np.arange(len(shards)))):
        video = shards.read(number)
        decoded = decode_frames(video, np.arange(sample.frames), sample.keyframes)
        assert _off(decoded, expected[number]) <= WITHIN, number
        assert _off(cached[number][0], expected[number]) <= WITHIN, number
        with av.open(io.BytesIO(video)) as container:
            context = container.streams.video[0].codec_context
            assert (context.colorspace, context.color_range) == (6, 1)
        with av.open(io.BytesIO(strip_jpeg(video)), format="jpeg_pipe") as container:
            strip = next(container.decode(video=0)).to_ndarray(format="rgb24")
        assert _off(strip, expected[number]) <= WITHIN + 2, number


def test_prediction_sees_the_same_colours(videos: Path) -> None:
    for name, colour in COLOURS.items():
        for path in sorted((videos / name).iterdir()):
            assert _off(decode_all(path), colour) <= WITHIN, path.name


def test_a_matrix_that_cannot_be_converted_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "videos/any").mkdir(parents=True)
    for name, tag in (("YCgCo", 8), ("BT.709", 1)):
        frame = _solid("yuv420p", [120, 110, 130], (64, 48))
        _write(tmp_path / f"videos/any/{name}.mkv", frame, tag, 1)
    config = ShardConfig(
        format="folder", videos=tmp_path / "videos", out=str(tmp_path / "out"), max_missing=0.5
    )
    assert shard(config, show_progress=False).splits == {"train": 1}
    assert '"code": "unsupported_colours"' in (tmp_path / "out/quarantine.jsonl").read_text()
