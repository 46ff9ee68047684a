"""Renders labelled pictures whose class is the letter that they show, in any place."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_prep.synthetic import LETTERS, Motion, coverage, f32, glyph_of


def letter_picture(seed: int, split: int, index: int, size: int = 32) -> npt.NDArray[np.uint8]:
    """Render picture `index` of split number `split`: (1, size, size, 3) uint8 RGB.

    Its class is number `index % 10` of the ten letters; it depends on the arguments alone.
    """
    sequence = np.random.SeedSequence((seed, split, index))
    random = np.random.Generator(np.random.Philox(sequence))
    unit = size / 32
    x, y = random.uniform(-6, 6, 2) * unit
    still = Motion(
        x=f32([x]),
        y=f32([y]),
        height=f32([random.uniform(12.0, 18.0) * unit]),
        angle=f32([random.uniform(-0.3, 0.3)]),
    )
    ink = coverage(glyph_of(LETTERS[index % len(LETTERS)]), still, size)[..., None]
    background, colour = random.uniform(0, 70, 3), random.uniform(150, 255, 3)
    noisy = background + ink * (colour - background) + random.normal(0.0, 5.0, (1, size, size, 3))
    image: npt.NDArray[np.uint8] = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    return image
