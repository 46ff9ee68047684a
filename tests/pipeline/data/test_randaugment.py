"""RandAugment against PIL, which timm's and every published recipe's operations call."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from pipeline.data import randaugment
from pipeline.data.config import ErasingConfig, RandAugmentConfig
from pipeline.data.randaugment import rand_augment, random_erase

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPERATIONS = sorted(randaugment._OPERATIONS)


class Signs(np.random.Generator):
    """A generator whose draws have one sign: below 0.5 negates."""

    def __init__(self, negative: bool) -> None:
        super().__init__(np.random.Philox(0))
        self._value = 0.0 if negative else 0.9

    def random(self) -> float:
        return self._value


def picture(height: int = 40, width: int = 56) -> np.ndarray:
    """A smooth picture from 20 to 220, in which displacement by part of a pixel costs little."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + c) + np.cos(y / 7 - c) for c in range(3)]
    return np.stack([20 + 50 * (2 + wave) for wave in waves], axis=-1).astype(np.uint8)


def solarize_add(image: Image.Image) -> Image.Image:
    return image.point([min(255, i + 55) if i < 128 else i for i in range(256)] * 3)


def moved(image: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
    fill = (124, 116, 104)
    return image.transform(image.size, Image.AFFINE, coefficients, Image.BILINEAR, fillcolor=fill)


LEVEL = 0.5
PIL_OPERATIONS = {
    "auto_contrast": ImageOps.autocontrast,
    "brightness": lambda image: ImageEnhance.Brightness(image).enhance(1.45),
    "color": lambda image: ImageEnhance.Color(image).enhance(1.45),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.45),
    "equalize": ImageOps.equalize,
    "invert": ImageOps.invert,
    "posterize": lambda image: ImageOps.posterize(image, 2),
    "rotate": lambda image: image.rotate(15, Image.BILINEAR, fillcolor=(124, 116, 104)),
    "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(1.45),
    "shear_x": lambda image: moved(image, (1, 0.15, 0, 0, 1, 0)),
    "shear_y": lambda image: moved(image, (1, 0, 0, 0.15, 1, 0)),
    "solarize": lambda image: ImageOps.solarize(image, 128),
    "solarize_add": solarize_add,
    "translate_x": lambda image: moved(image, (1, 0, 0.225 * 56, 0, 1, 0)),
    "translate_y": lambda image: moved(image, (1, 0, 0, 0, 1, 0.225 * 40)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_matches_pil(name: str) -> None:
    frame = picture()
    clip = torch.from_numpy(frame).permute(2, 0, 1)[:, None]
    got = randaugment._OPERATIONS[name](clip, LEVEL, Signs(negative=False))[:, 0].permute(1, 2, 0)
    expected = np.asarray(PIL_OPERATIONS[name](Image.fromarray(frame)))
    difference = np.abs(got.numpy().astype(int) - expected)
    # Along the border of a moved picture the two blend with the fill differently.
    assert np.quantile(difference, 0.93) <= 2
    if name not in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
        assert difference.max() <= 1


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("negative", [False, True])
def test_every_frame_gets_the_same_treatment(name: str, negative: bool) -> None:
    frame = torch.from_numpy(picture()).permute(2, 0, 1)
    clip = frame[:, None].expand(-1, 4, -1, -1)
    got = randaugment._OPERATIONS[name](clip, 0.9, Signs(negative))
    assert got.dtype == torch.uint8
    assert got.shape == clip.shape
    assert not torch.equal(got, clip)
    assert all(torch.equal(got[:, 0], got[:, t]) for t in range(4))


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_clip_of_one_colour_survives(name: str) -> None:
    clip = torch.full((3, 2, 8, 8), 77, dtype=torch.uint8)
    assert randaugment._OPERATIONS[name](clip, 1.0, Signs(negative=False)).shape == clip.shape


def test_draws_are_reproducible_and_use_every_operation(monkeypatch) -> None:
    used: set[str] = set()
    for name, operation in randaugment._OPERATIONS.items():

        def record(clip, level, rng, name=name, operation=operation):
            used.add(name)
            return operation(clip, level, rng)

        monkeypatch.setitem(randaugment._OPERATIONS, name, record)
    clip = torch.from_numpy(picture()).permute(2, 0, 1)[:, None]
    config = RandAugmentConfig(num_ops=4)
    for seed in range(40):
        first, second = (rand_augment(clip, config, np.random.default_rng(seed)) for _ in range(2))
        assert torch.equal(first, second)
    assert used == set(OPERATIONS)


def test_erasing_cuts_one_box_through_all_frames() -> None:
    clip = torch.full((3, 4, 64, 64), 7, dtype=torch.uint8)
    config = ErasingConfig(probability=1.0)
    erased = random_erase(clip, config, MEAN, STD, np.random.default_rng(1))
    touched = (erased != 7).any(0)
    rows, columns = touched.any(0).any(1), touched.any(0).any(0)
    box = rows[:, None] & columns[None]
    assert 0.02 * 64 * 64 * 0.8 < box.sum() < 64 * 64 / 3 * 1.2
    assert (touched.float().mean(0)[box] > 0.9).float().mean() > 0.9
    assert (clip == 7).all()
    inside = erased[:, :, box].float()
    expected = torch.tensor(MEAN).view(3, 1) * 255
    assert (inside.mean(2) - expected).abs().max() < 25


def test_erasing_happens_as_often_as_asked() -> None:
    clip = torch.full((3, 1, 16, 16), 7, dtype=torch.uint8)
    config = ErasingConfig(probability=0.25)
    times = sum(
        not torch.equal(random_erase(clip, config, MEAN, STD, np.random.default_rng(s)), clip)
        for s in range(400)
    )
    assert 70 <= times <= 130
