"""The patches that stay visible, against values computed by hand."""

from __future__ import annotations

import pytest
import torch

from pipeline.training.tasks.masks import num_visible, visible_by_attention, visible_tubelets


@pytest.mark.parametrize(
    ("patches", "ratio", "expected"),
    [
        (196, 0.8, 40),  # 156.8 are masked in the published code: 156, and 8 x 40 + 1 = 321 tokens
        (16, 0.0, 16),
        (16, 0.75, 4),
        (16, 0.74, 5),  # 11.84 -> 11
        (16, 15 / 16, 1),
        (16, 0.999, 1),
        (1, 0.9, 1),
        (196, 1 - 2**-53, 1),  # the product rounds up to 196
    ],
)
def test_visible_patches_per_frame(patches: int, ratio: float, expected: int) -> None:
    assert num_visible(patches, ratio) == expected


DRAWS = torch.tensor([[0.9, 0.1, 0.5, 0.3], [0.2, 0.8, 0.4, 0.6]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("steps", "ratio", "expected"),
    [
        (2, 0.5, [[1, 3, 5, 7], [0, 2, 4, 6]]),
        (3, 0.75, [[1, 5, 9], [0, 4, 8]]),  # one patch is left in each frame
        (1, 0.5, [[1, 3], [0, 2]]),  # one frame
        (1, 0.75, [[1], [0]]),  # one token
        (2, 0.0, [list(range(8))] * 2),
    ],
)
def test_tubelets_hold_the_smallest_draws_of_all_frames(
    steps: int, ratio: float, expected: list[list[int]]
) -> None:
    assert visible_tubelets(DRAWS, steps, ratio).tolist() == expected


def by_attention(draws: list[float], attention: list[float], ratio: float) -> list[int]:
    """One clip of one frame."""
    numbers = visible_by_attention(
        torch.tensor([[draws]], dtype=torch.float64), torch.tensor([[attention]]), ratio
    )
    return list(map(int, numbers[0]))


@pytest.mark.parametrize(
    ("attention", "ratio", "expected"),
    [
        # -log(1 - u) is 0.693, 0.693, 0.693, 0.693: the larger attention comes first.
        ([1.0, 4.0, 2.0, 3.0], 0.5, [1, 3]),
        ([1.0, 4.0, 2.0, 3.0], 0.75, [1]),
        ([1.0, 4.0, 2.0, 3.0], 0.0, [0, 1, 2, 3]),
        ([0.0, 0.0, 0.0, 1.0], 0.5, [0, 3]),  # then the first of those without attention
        ([0.0, 0.0, 0.0, 0.0], 0.5, [0, 1]),
    ],
)
def test_attention_decides_between_equal_draws(
    attention: list[float], ratio: float, expected: list[int]
) -> None:
    assert by_attention([0.5] * 4, attention, ratio) == expected


def test_a_race_by_hand() -> None:
    """-log(1 - u) / a is 0.105 / 0.1 = 1.05, 0.916 / 0.4 = 2.29, 0.511 / 0.5 = 1.02, and 0 / 0."""
    assert by_attention([0.1, 0.6, 0.4, 0.0], [0.1, 0.4, 0.5, 0.0], 0.75) == [2]
    assert by_attention([0.1, 0.6, 0.4, 0.0], [0.1, 0.4, 0.5, 0.0], 0.5) == [0, 2]
    assert by_attention([0.1, 0.6, 0.4, 0.0], [0.1, 0.4, 0.5, 0.0], 0.25) == [0, 1, 2]


def test_frames_are_drawn_by_themselves_and_numbered_on() -> None:
    draws = torch.full((1, 2, 2), 0.5, dtype=torch.float64)
    attention = torch.tensor([[[1.0, 2.0], [2.0, 1.0]]])
    assert visible_by_attention(draws, attention, 0.5).tolist() == [[1, 2]]


def test_a_patch_is_first_as_often_as_its_attention_says() -> None:
    draws = torch.rand(5_000, 1, 3, dtype=torch.float64, generator=torch.manual_seed(0))
    attention = torch.tensor([0.5, 0.3, 0.2]).expand(5_000, 1, 3)
    first = visible_by_attention(draws, attention, 0.9).flatten().bincount() / 5_000
    torch.testing.assert_close(first, torch.tensor([0.5, 0.3, 0.2]), atol=0.03, rtol=0)
