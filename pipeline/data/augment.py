"""Cropping, resizing and mirroring of whole clips, with the same change to every frame.

The input is a decoded clip, (T, H, W, 3) uint8, and the output has the model's layout,
(3, T, S, S) uint8. Resizing is bilinear with antialiasing, in uint8.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.config import CropConfig

Frames = NDArray[np.uint8]


class Box(NamedTuple):
    top: int
    left: int
    height: int
    width: int


def augment(
    frames: Frames,
    crop: CropConfig,
    hflip: float,
    size: int,
    rng: np.random.Generator,
    out: Tensor | None = None,
) -> Tensor:
    """Make a random training view of a clip: (3, T, size, size) uint8, in `out` if given."""
    height, width = frames.shape[1:3]
    match crop.kind:
        case "random_resized":
            clip = resize(frames, random_resized_box(height, width, crop, rng), size, size)
        case "random":
            short = round(size * rng.uniform(*crop.short_side))
            frames = scale_short_side(frames, short)
            top = int(rng.integers(frames.shape[1] - size + 1))
            left = int(rng.integers(frames.shape[2] - size + 1))
            clip = resize(frames, Box(top, left, size, size), size, size)
        case "none":
            clip = square_crops(frames, size, 1)[0]
    if out is None:
        out = torch.empty(clip.shape, dtype=torch.uint8)
    out.copy_(clip)
    if rng.random() < hflip:
        # The flip follows the copy, because reversing planar rows is about four times faster than
        # reversing pixels of three bytes.
        out.copy_(out.flip(-1))
    return out


def square_crops(frames: Frames, size: int, crops: int) -> Tensor:
    """Resize the short side to `size` and cut squares spread evenly along the long side.

    Returns (crops, 3, T, size, size) uint8; a single crop is the centre.
    """
    frames = scale_short_side(frames, size)
    height, width = frames.shape[1:3]
    places = [0.5] if crops == 1 else [k / (crops - 1) for k in range(crops)]
    boxes = [
        Box(round((height - size) * place), round((width - size) * place), size, size)
        for place in places
    ]
    return torch.stack([resize(frames, box, size, size) for box in boxes])


def random_resized_box(height: int, width: int, crop: CropConfig, rng: np.random.Generator) -> Box:
    """Draw a box of random area and aspect ratio inside the frame, as torchvision does."""
    for _ in range(10):
        area = height * width * rng.uniform(*crop.scale)
        ratio = math.exp(rng.uniform(math.log(crop.ratio[0]), math.log(crop.ratio[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return Box(top, left, h, w)
    # No draw fitted, as happens with a very long frame, so take its largest central box of a
    # permitted ratio.
    h = min(height, max(1, round(width / crop.ratio[0])))
    w = min(width, max(1, round(height * crop.ratio[1])))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def scale_short_side(frames: Frames, short: int) -> Frames:
    """Resize a clip so that min(H, W) == short, keeping its aspect ratio."""
    height, width = frames.shape[1:3]
    if min(height, width) == short:
        return frames
    factor = short / min(height, width)
    height, width = max(short, round(height * factor)), max(short, round(width * factor))
    clip = resize(frames, Box(0, 0, *frames.shape[1:3]), height, width)
    return clip.permute(1, 2, 3, 0).numpy()


def resize(frames: Frames, box: Box, height: int, width: int) -> Tensor:
    """Cut the box out of every frame and resize it: (3, T, height, width) uint8, maybe a view."""
    top, left, h, w = box
    clip = torch.from_numpy(frames)[:, top : top + h, left : left + w].permute(0, 3, 1, 2)
    if (h, w) != (height, width):
        clip = F.interpolate(clip, (height, width), mode="bilinear", antialias=True)
    return clip.transpose(0, 1)
