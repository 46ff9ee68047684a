"""Renders labelled videos whose class is a motion: a letter that moves, turns or changes size.

A single frame says nothing about the class: place, size and angle vary from clip to clip over the
range through which a motion changes them, and motion is centred on the middle of the clip.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

from data_prep.durable import publish
from data_prep.errors import DataError, refused
from data_prep.video.h264 import TIME_BASE, encode_clip

CLASSES = (
    "clockwise",
    "counter_clockwise",
    "down",
    "growing",
    "left",
    "right",
    "shrinking",
    "up",
)
ANNOTATIONS_NAME = "annotations.csv"
OPTIONS_NAME = "synthetic.json"

_LETTERS = {  # 5 x 7 pixels; no letter looks like itself when rotated
    "F": "11111 10000 10000 11110 10000 10000 10000",
    "G": "01110 10001 10000 10111 10001 10001 01111",
    "J": "00111 00010 00010 00010 00010 10010 01100",
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "P": "11110 10001 10001 11110 10000 10000 10000",
    "R": "11110 10001 10001 11110 10100 10010 10001",
    "Q": "01110 10001 10001 10001 10101 10010 01101",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "7": "11111 00001 00010 00100 01000 01000 01000",
    "Y": "10001 10001 01010 00100 00100 00100 00100",
}
_LUMA = np.array([0.299, 0.587, 0.114])
_STRAIGHT = frozenset({"left", "right", "up", "down"})
_MIN_RADIUS = 6.0  # pixels at a size of 32
_MIN_CONTRAST = 80.0
_FloatArray = npt.NDArray[np.float32]


def _bitmap(rows: str) -> _FloatArray:
    """A letter as a (9, 9) bitmap whose empty border makes sampling outside of it give 0."""
    ink = np.array([[int(bit) for bit in row] for row in rows.split()], dtype=np.float32)
    return np.pad(ink, ((1, 1), (2, 2)))


_GLYPHS = np.stack([_bitmap(rows) for rows in _LETTERS.values()])
LETTERS = tuple(_LETTERS)


def glyph_of(letter: str) -> _FloatArray:
    """The (9, 9) bitmap of a letter."""
    glyph: _FloatArray = _GLYPHS[LETTERS.index(letter)]
    return glyph


def random_glyph(random: np.random.Generator) -> _FloatArray:
    """The (9, 9) bitmap of a letter."""
    glyph: _FloatArray = _GLYPHS[random.integers(len(_GLYPHS))]
    return glyph


class SynthOptions(BaseModel):
    """Options of `vmp data synth`. A nano model learns the default clips in minutes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    clips_per_split: Mapping[str, NonNegativeInt] = Field(default={"train": 6000, "val": 800})
    size: int = Field(default=32, ge=16, multiple_of=2)
    """Pixels per side."""
    frames: int = Field(default=8, ge=2)
    fps: float = Field(default=8.0, gt=0)
    seed: int = Field(default=0, ge=0)
    crf: int = Field(default=12, ge=0, le=51)
    speed_min: float = 1.2
    """Slowest displacement in pixels per frame at `size` 32; it grows with `size`."""
    speed_max: float = 2.5
    turn_degrees: float = 30.0
    """Rotation per frame."""
    growth: float = 1.14
    """Ratio of the letter's sizes in neighbouring frames."""
    noise: float = 5.0
    """Standard deviation of the noise on 8-bit values."""

    @property
    def classes(self) -> tuple[str, ...]:
        return CLASSES

    def render(self, label: str, random: np.random.Generator) -> npt.NDArray[np.uint8]:
        """Render one clip of a class: (frames, size, size, 3) uint8 RGB."""
        return render(label, self, random)


def f32(values: npt.ArrayLike) -> _FloatArray:
    return np.asarray(values, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Motion:
    """The place, size and angle of the letter in each frame; arrays of shape (frames,)."""

    x: _FloatArray
    """Pixels right of the centre."""
    y: _FloatArray
    """Pixels below the centre."""
    height: _FloatArray
    """Pixels."""
    angle: _FloatArray
    """Radians, clockwise on the screen."""


def _motion(label: str, options: SynthOptions, random: np.random.Generator) -> Motion:
    n = options.frames
    ramp = np.arange(n, dtype=np.float32) - (n - 1) / 2
    # Every class makes the same draws, so that only the motion differs: a clip that does not move
    # along x stays at one of the places through which a moving clip passes.
    still_x, still_y, still_size = ramp[random.integers(0, n, 3)]
    signs = random.choice((-1.0, 1.0), 2)
    unit = options.size / 32
    speed_x, speed_y = random.uniform(options.speed_min, options.speed_max, 2) * unit
    middle_x, middle_y = random.uniform(-1.5, 1.5, 2) * unit
    height = random.uniform(12.0, 15.0) * unit
    angle = random.uniform(0.0, 2 * np.pi)

    steps_x = {"left": -ramp, "right": ramp}.get(label, signs[0] * np.full(n, still_x))
    steps_y = {"up": -ramp, "down": ramp}.get(label, signs[1] * np.full(n, still_y))
    steps_size = {"growing": ramp, "shrinking": -ramp}.get(label, np.full(n, still_size))
    steps_angle = {"clockwise": ramp, "counter_clockwise": -ramp}.get(label, np.zeros(n))
    place = (middle_x + speed_x * steps_x) + 1j * (middle_y + speed_y * steps_y)
    if label not in _STRAIGHT:
        # The picture turns about its centre, where a turning letter would hardly move.
        place *= np.maximum(1.0, _MIN_RADIUS * unit / np.abs(place))
    turn = np.deg2rad(options.turn_degrees) * steps_angle
    place = place * np.exp(1j * turn)
    return Motion(
        x=f32(place.real),
        y=f32(place.imag),
        height=f32(height * options.growth**steps_size),
        angle=f32(angle + turn),
    )


def coverage(glyph: _FloatArray, motion: Motion, size: int) -> _FloatArray:
    """Ink per pixel, (frames, size, size) from 0 to 1, by bilinear lookup in the bitmap."""
    axis = np.arange(size, dtype=np.float32) - (size - 1) / 2
    dx = axis[None, None, :] - motion.x[:, None, None]
    dy = axis[None, :, None] - motion.y[:, None, None]
    cells_per_pixel = (7.0 / motion.height)[:, None, None]
    cos, sin = np.cos(motion.angle)[:, None, None], np.sin(motion.angle)[:, None, None]
    column = (cos * dx + sin * dy) * cells_per_pixel + (glyph.shape[1] - 1) / 2
    row = (-sin * dx + cos * dy) * cells_per_pixel + (glyph.shape[0] - 1) / 2
    limit_row, limit_column = glyph.shape[0] - 1.001, glyph.shape[1] - 1.001
    column, row = np.clip(column, 0, limit_column), np.clip(row, 0, limit_row)
    c, r = column.astype(np.intp), row.astype(np.intp)
    fc, fr = column - c, row - r
    top = glyph[r, c] * (1 - fc) + glyph[r, c + 1] * fc
    bottom = glyph[r + 1, c] * (1 - fc) + glyph[r + 1, c + 1] * fc
    return f32(top * (1 - fr) + bottom * fr)


def render(label: str, options: SynthOptions, random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Render one clip: (frames, size, size, 3) uint8 RGB."""
    motion = _motion(label, options, random)
    glyph = random_glyph(random)
    # Letters are bright on dark: a small model would spend its time on a changing polarity.
    background, ink = random.uniform(0, 70, 3), random.uniform(0, 255, 3)
    while _LUMA @ (ink - background) < _MIN_CONTRAST:
        ink = random.uniform(0, 255, 3)
    inked = coverage(glyph, motion, options.size)[..., None]
    clean = background + inked * (ink - background)
    noisy = clean + random.normal(0.0, options.noise, clean.shape)
    image: npt.NDArray[np.uint8] = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    return image


def picture(options: SynthOptions, split: int, index: int) -> npt.NDArray[np.uint8]:
    """Render clip `index` of split number `split`: (frames, size, size, 3) uint8 RGB, not encoded.

    It depends on `options` and the two numbers alone.
    """
    seed = np.random.SeedSequence((options.seed, split, index))
    return options.render(_label(index, options), np.random.Generator(np.random.Philox(seed)))


def _clip_bytes(options: SynthOptions, split: int, index: int) -> bytes:
    reformatter = VideoReformatter()
    frames = (
        reformatter.reformat(VideoFrame.from_ndarray(image), format="yuv420p", threads=1)
        for image in picture(options, split, index)
    )
    step = round(1 / (Fraction(options.fps) * TIME_BASE))
    times = itertools.count(0, step)
    return encode_clip(
        zip(frames, times, strict=False),
        width=options.size,
        height=options.size,
        fps=options.fps,
        crf=options.crf,
    ).video


def _render_range(out: Path, split: str, number: int, span: range, options: SynthOptions) -> None:
    for index in span:
        path = out / _relative_path(split, index)
        path.write_bytes(_clip_bytes(options, number, index))


def _spans(count: int, size: int = 64) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _label(index: int, options: SynthOptions) -> str:
    return options.classes[index % len(options.classes)]


def _relative_path(split: str, index: int) -> str:
    return f"{split}/{index:06d}.mp4"


def synthesize(out: Path, options: SynthOptions, *, workers: int | None = None) -> Path:
    """Render the clips, write `annotations.csv` (path,label,split) and return its path.

    The files depend on `options` alone, not on `workers`. A second call with the same options does
    nothing. Raises `DataError` when `out` cannot be written or holds clips of other options.
    """
    annotations, settings = out / ANNOTATIONS_NAME, out / OPTIONS_NAME
    wanted = options.model_dump_json(indent=2)
    try:
        if settings.exists() and annotations.exists():
            if settings.read_text() == wanted:
                return annotations
            raise DataError(f"{out}: holds clips rendered with other options; choose another --out")
        for split in options.clips_per_split:
            (out / split).mkdir(parents=True, exist_ok=True)
        publish(settings, wanted.encode())
    except OSError as error:
        raise refused(error, f"{out}: cannot be written; choose another --out") from None
    with ProcessPoolExecutor(workers or os.cpu_count(), get_context("spawn")) as pool:
        futures = [
            pool.submit(_render_range, out, split, number, span, options)
            for number, (split, count) in enumerate(options.clips_per_split.items())
            for span in _spans(count)
        ]
        for future in futures:
            future.result()
    publish(annotations, _annotation_table(options).encode())
    return annotations


def _annotation_table(options: SynthOptions) -> str:
    lines = ["path,label,split"]
    for split, count in options.clips_per_split.items():
        lines += [f"{_relative_path(split, i)},{_label(i, options)},{split}" for i in range(count)]
    return "\n".join(lines) + "\n"
