"""Crops and resizes treat clips as a whole, stay in the frame and are exact as identities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.augment import augment, random_resized_box, resize, square_crops
from pipeline.data.config import CropConfig
from pipeline.data.randomness import sample_rng


def gradient(frames: int, height: int, width: int) -> np.ndarray:
    """Red grows with x, green with y, blue with time."""
    t, y, x = np.meshgrid(range(frames), range(height), range(width), indexing="ij")
    return np.stack([x, y, t], axis=-1).astype(np.uint8)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 1000))
def test_random_boxes_lie_inside_the_frame(height: int, width: int, seed: int) -> None:
    box = random_resized_box(height, width, CropConfig(), np.random.default_rng(seed))
    assert 0 <= box.top <= box.top + box.height <= height
    assert 0 <= box.left <= box.left + box.width <= width
    assert box.height > 0
    assert box.width > 0


@settings(deadline=None)
@given(
    st.sampled_from(["random_resized", "random", "none"]),
    st.integers(9, 70),
    st.integers(9, 70),
    st.integers(0, 1000),
)
def test_every_frame_gets_the_same_cut(kind, height: int, width: int, seed: int) -> None:
    frames = gradient(3, height, width)
    crop = CropConfig(kind=kind)
    clip = augment(frames, crop, 0.5, 16, np.random.default_rng(seed))
    assert clip.shape == (3, 3, 16, 16)
    assert torch.equal(clip[:2, 0], clip[:2, 1])
    assert torch.equal(clip[:2, 0], clip[:2, 2])
    assert clip[2].unique().tolist() == [0, 1, 2]


def test_nothing_to_do_gives_the_pixels_back() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    clip = augment(frames, CropConfig(kind="none"), 0.0, 16, np.random.default_rng(0))
    assert torch.equal(clip, torch.from_numpy(frames).permute(3, 0, 1, 2))
    mirrored = augment(frames, CropConfig(kind="none"), 1.0, 16, np.random.default_rng(0))
    assert torch.equal(mirrored, clip.flip(-1))


def test_three_crops_are_the_ends_and_the_middle_of_the_long_side() -> None:
    frames = gradient(2, 16, 40)
    lefts = [int(crop[0, 0, 0, 0]) for crop in square_crops(frames, 16, 3)]
    assert lefts == [0, 12, 24]
    tops = [int(crop[1, 0, 0, 0]) for crop in square_crops(frames.swapaxes(1, 2), 16, 3)]
    assert tops == [0, 0, 0]
    assert int(square_crops(frames, 16, 1)[0][0, 0, 0, 0]) == 12


def test_resizing_matches_floating_point_interpolation() -> None:
    frames = np.random.default_rng(1).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    got = resize(frames, (4, 6, 30, 50), 16, 20)
    exact = torch.nn.functional.interpolate(
        torch.from_numpy(frames)[:, 4:34, 6:56].permute(0, 3, 1, 2).double(),
        (16, 20),
        mode="bilinear",
        antialias=True,
    )
    assert (got.transpose(0, 1).double() - exact).abs().max() <= 1.0


@pytest.mark.parametrize(
    "other", [(1, 0, "k", 0, "cut"), (0, 1, "k", 0, "cut"), (0, 0, "l", 0, "cut"),
              (0, 0, "k", 1, "cut"), (0, 0, "k", 0, "mix")]
)  # fmt: skip
def test_random_streams_depend_on_every_part_of_their_name(other) -> None:
    name = (0, 0, "k", 0, "cut")
    draws = [sample_rng(*n).integers(2**63) for n in (name, name, other)]
    assert draws[0] == draws[1] != draws[2]
