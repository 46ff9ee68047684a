"""RandAugment and random erasing over whole clips, in uint8.

The operations and ranges are those of timm's `rand-m{magnitude}-n{num_ops}-mstd{std}-inc1`, which
all published VideoMamba recipes use. An operation is drawn once and applied to every frame alike.
Statistics (autocontrast, equalize, contrast) cover the whole clip, so that no clip flickers. Clips
are (3, T, H, W) uint8.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.config import ErasingConfig, RandAugmentConfig

# Rotation, shear and translation fill what they uncover with the mean colour of ImageNet.
_FILL = torch.tensor([124.0, 116.0, 104.0]).view(3, 1, 1, 1)
_LUMA = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1, 1)
_APPLY_PROBABILITY = 0.5

_Row = tuple[float, float, float]
Operation = Callable[[Tensor, float, np.random.Generator], Tensor]
"""(clip, level in [0, 1], generator for the sign) -> clip."""


def rand_augment(clip: Tensor, config: RandAugmentConfig, rng: np.random.Generator) -> Tensor:
    """Draw `config.num_ops` random operations and apply each with probability 0.5."""
    for name in rng.choice(sorted(_OPERATIONS), config.num_ops):
        if rng.random() < _APPLY_PROBABILITY:
            level = np.clip(rng.normal(config.magnitude, config.std), 0, 10) / 10
            clip = _OPERATIONS[name](clip, float(level), rng)
    return clip


def random_erase(
    clip: Tensor,
    config: ErasingConfig,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    rng: np.random.Generator,
) -> Tensor:
    """With `config.probability`, replace a box through all frames by noise.

    Area and aspect ratio are drawn as in timm. The noise is standard normal after normalisation
    with `mean` and `std`, clipped to the range of uint8.
    """
    if rng.random() >= config.probability:
        return clip
    frames, height, width = clip.shape[1:]
    for _ in range(10):
        area = height * width * rng.uniform(*config.area)
        ratio = math.exp(rng.uniform(math.log(config.ratio[0]), math.log(config.ratio[1])))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < height and 0 < w < width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            noise = torch.from_numpy(rng.standard_normal((3, frames, h, w), np.float32))
            channel = torch.tensor([mean, std]).view(2, 3, 1, 1, 1) * 255
            clip = clip.clone()
            clip[:, :, top : top + h, left : left + w] = _to_uint8(channel[0] + channel[1] * noise)
            return clip
    return clip


def _to_uint8(clip: Tensor) -> Tensor:
    return clip.round_().clamp_(0, 255).to(torch.uint8)


def _blend(base: Tensor | float, clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    """Return base + factor * (clip - base), with a factor of 1 plus or minus 0.9 * level."""
    factor = 1 + _signed(0.9 * level, rng)
    return _to_uint8(base + factor * (clip.float() - base))


def _signed(value: float, rng: np.random.Generator) -> float:
    return -value if rng.random() < 0.5 else value


def _affine(clip: Tensor, rows: tuple[_Row, _Row]) -> Tensor:
    """Give output pixel (x, y), counted from the centre, the colour at `rows @ (x, y, 1)`."""
    channels, frames, height, width = clip.shape
    (a, b, c), (d, e, f) = rows
    # torch measures coordinates in units of half the width and half the height.
    theta = torch.tensor(
        [[a, b * height / width, 2 * c / width], [d * width / height, e, 2 * f / height]]
    )
    planes = (clip.float() - _FILL).reshape(1, channels * frames, height, width)
    grid = F.affine_grid(theta[None], list(planes.shape), align_corners=False)
    moved = F.grid_sample(planes, grid, padding_mode="zeros", align_corners=False)
    return _to_uint8(moved.view(clip.shape) + _FILL)


def _auto_contrast(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    low = clip.amin((1, 2, 3), keepdim=True).float()
    high = clip.amax((1, 2, 3), keepdim=True).float()
    flat = high == low
    scale = torch.where(flat, 1.0, 255 / torch.where(flat, 1.0, high - low))
    return _to_uint8((clip.float() - torch.where(flat, 0.0, low)) * scale)


def _equalize(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    """Flatten each channel's histogram over the clip, by PIL's rule."""
    pixels = clip.numpy()
    planes = []
    for plane in pixels:
        histogram = np.bincount(plane.ravel(), minlength=256)
        last = histogram[np.flatnonzero(histogram)[-1]]
        step = (plane.size - last) // 255
        if step == 0:
            planes.append(plane)
            continue
        below = np.concatenate([[0], np.cumsum(histogram)[:-1]])
        planes.append(np.minimum((below + step // 2) // step, 255).astype(np.uint8)[plane])
    return torch.from_numpy(np.stack(planes))


def _invert(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    return 255 - clip


def _rotate(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    angle = math.radians(_signed(30 * level, rng))
    cos, sin = math.cos(angle), math.sin(angle)
    return _affine(clip, ((cos, -sin, 0), (sin, cos, 0)))


def _shear_x(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    # As in PIL, the top edge stays in place.
    factor = _signed(0.3 * level, rng)
    return _affine(clip, ((1, factor, factor * clip.shape[2] / 2), (0, 1, 0)))


def _shear_y(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    factor = _signed(0.3 * level, rng)
    return _affine(clip, ((1, 0, 0), (factor, 1, factor * clip.shape[3] / 2)))


def _translate_x(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    return _affine(clip, ((1, 0, _signed(0.45 * level, rng) * clip.shape[3]), (0, 1, 0)))


def _translate_y(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    return _affine(clip, ((1, 0, 0), (0, 1, _signed(0.45 * level, rng) * clip.shape[2])))


def _posterize(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    bits = 4 - int(4 * level)
    return clip & (0xFF << (8 - bits) & 0xFF)


def _solarize(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    threshold = 256 - int(256 * level)
    return torch.where(clip.short() < threshold, clip, 255 - clip)


def _solarize_add(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    brighter = (clip.short() + int(110 * level)).clamp_(max=255).to(torch.uint8)
    return torch.where(clip < 128, brighter, clip)


def _color(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    return _blend((clip.float() * _LUMA).sum(0, keepdim=True), clip, level, rng)


def _contrast(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    return _blend(float((clip.float() * _LUMA).sum(0).mean().round()), clip, level, rng)


def _brightness(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    return _blend(0.0, clip, level, rng)


def _sharpness(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    """Blend with PIL's SMOOTH: (3 x 3 box sum + 4 * centre) / 13, with the edges unchanged."""
    wide = clip.short()
    rows = wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = clip.float()
    smooth[..., 1:-1, 1:-1] = (box + 4 * wide[..., 1:-1, 1:-1]) / 13
    return _blend(smooth, clip, level, rng)


_OPERATIONS: dict[str, Operation] = {
    "auto_contrast": _auto_contrast,
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "equalize": _equalize,
    "invert": _invert,
    "posterize": _posterize,
    "rotate": _rotate,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
