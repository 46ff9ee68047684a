"""Clips that look like filmed ones to a codec, for `vmp bench loader` without shards of the user.

A textured background pans, textured squares move over it, and noise lies on all of it. Size and
length are those of Kinetics: 340x256 pixels, 280 frames at 25 per second.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame

from data_prep.options import ShardConfig
from data_prep.shard import shard
from data_prep.video.clip import EncodeSettings
from data_prep.video.h264 import TIME_BASE, encode_clip

WIDTH, HEIGHT, FRAMES, FPS = 340, 256, 280, 25
_CLASSES = 4
_SQUARE = 70  # pixels per side
_Picture = npt.NDArray[np.float64]


def shard_scenes(scratch: Path, clips: int, *, frames: int = FRAMES) -> Path:
    """A shard directory under `scratch` with the split train; the same bytes every time."""
    videos, out = scratch / "videos", scratch / "shards"
    videos.mkdir()
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        list(pool.map(_write, [videos] * clips, range(clips), [frames] * clips))
    rows = [f"{_name(seed)},class {seed % _CLASSES}" for seed in range(clips)]
    annotations = scratch / "annotations.csv"
    annotations.write_text("\n".join(["path,label", *rows, ""]))
    shard(
        ShardConfig(
            format="csv",
            annotations=annotations,
            videos=videos,
            out=str(out),
            clips_per_shard=16,
            encode=EncodeSettings(copy_suitable=True),
        ),
        show_progress=False,
    )
    return out


def _name(seed: int) -> str:
    return f"{seed:06d}.mp4"


def _write(videos: Path, seed: int, frames: int) -> None:
    clip = encode_clip(_scene(seed, frames), width=WIDTH, height=HEIGHT, fps=FPS, crf=23)
    (videos / _name(seed)).write_bytes(clip.video)


def _scene(seed: int, frames: int) -> Iterator[tuple[VideoFrame, int]]:
    """Frames in yuv420p with their times."""
    rng = np.random.default_rng(seed)
    background = _texture(rng, HEIGHT + 60, WIDTH + 60)
    squares: list[Any] = [
        (_texture(rng, _SQUARE, _SQUARE), rng.uniform(0, 6.28, 2), rng.uniform(0.02, 0.08))
        for _ in range(3)
    ]
    for t in range(frames):
        dy, dx = int(30 + 29 * np.sin(t / 90)), int(30 + 29 * np.cos(t / 70))
        picture = background[dy : dy + HEIGHT, dx : dx + WIDTH].copy()
        for square, (phase_y, phase_x), speed in squares:
            y = int((HEIGHT - _SQUARE) * (0.5 + 0.5 * np.sin(phase_y + speed * t)))
            x = int((WIDTH - _SQUARE) * (0.5 + 0.5 * np.sin(phase_x + 0.8 * speed * t)))
            picture[y : y + _SQUARE, x : x + _SQUARE] = square
        picture += rng.normal(0, 3, picture.shape)
        pixels = np.clip(picture, 0, 255).astype(np.uint8)
        yield VideoFrame.from_ndarray(pixels).reformat(format="yuv420p"), round(t / FPS / TIME_BASE)


def _texture(rng: np.random.Generator, height: int, width: int) -> _Picture:
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3))
    fine = rng.normal(0, 12, (height, width, 3))
    smooth = coarse.repeat(8, 0).repeat(8, 1)[:height, :width]
    return np.clip(smooth * 0.8 + fine, 0, 255)
