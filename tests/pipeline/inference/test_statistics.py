"""Statistics against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.inference.statistics import (
    Interval,
    bootstrap_accuracy,
    bootstrap_difference,
    confusion,
    expected_calibration_error,
    mcnemar,
    per_class_accuracy,
    reliability,
    wilson_interval,
)


def answers(right: int, wrong: int) -> np.ndarray:
    return np.array([True] * right + [False] * wrong)


def discordant(only_first: int, only_second: int, both: int = 7) -> tuple[np.ndarray, np.ndarray]:
    first = [True] * only_first + [False] * only_second + [True] * both
    second = [False] * only_first + [True] * only_second + [True] * both
    return np.array(first, bool), np.array(second, bool)


def test_wilson_by_its_formula() -> None:
    z, n, p = 1.959963984540054, 10, 0.8
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert wilson_interval(8, 10) == pytest.approx((centre - half, centre + half))
    assert wilson_interval(0, 10).low == 0.0
    assert wilson_interval(10, 10).high == 1.0
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="11 of 10 videos"):
        wilson_interval(11, 10)


def test_the_bootstrap_is_that_of_resampled_videos() -> None:
    correct = answers(70, 30)
    rng = np.random.default_rng(5)
    resampled = correct[rng.integers(100, size=(10_000, 100))].mean(1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    assert bootstrap_accuracy(correct) == pytest.approx((low, high), abs=0.0101)
    assert bootstrap_accuracy(correct) == bootstrap_accuracy(rng.permutation(correct))
    few = [bootstrap_accuracy(correct, seed=seed, resamples=10) for seed in (0, 1, 0)]
    assert few[0] == few[2] != few[1]
    wider = bootstrap_accuracy(correct, confidence=0.99)
    assert wider.low < low < high < wider.high


@pytest.mark.parametrize(("right", "wrong", "expected"), [(5, 0, (1, 1)), (0, 5, (0, 0))])
def test_the_bootstrap_of_one_answer(right: int, wrong: int, expected: Interval) -> None:
    assert bootstrap_accuracy(answers(right, wrong)) == expected


def test_intervals_of_no_videos() -> None:
    none = np.zeros(0, bool)
    assert bootstrap_accuracy(none) == (0.0, 1.0)
    assert bootstrap_difference(none, none) == (-1.0, 1.0)


def test_the_bootstrap_of_a_difference_pairs_the_videos() -> None:
    first, second = discordant(10, 30, both=60)
    rng = np.random.default_rng(5)
    drawn = rng.integers(100, size=(10_000, 100))
    differences = second[drawn].mean(1) - first[drawn].mean(1)
    low, high = np.percentile(differences, [2.5, 97.5])
    assert bootstrap_difference(first, second) == pytest.approx((low, high), abs=0.0101)
    assert bootstrap_difference(first, first) == (0.0, 0.0)


def test_mcnemar_of_few_is_the_binomial_test() -> None:
    # P(at most 1 of 8 heads), both tails: 2 * (1 + 8) / 2**8.
    assert mcnemar(*discordant(1, 7)) == (1, 7, pytest.approx(18 / 256), True)
    assert mcnemar(*discordant(7, 1)).p_value == pytest.approx(18 / 256)
    assert mcnemar(*discordant(4, 4)).p_value == 1.0
    assert mcnemar(*discordant(0, 0)) == (0, 0, 1.0, True)
    assert mcnemar(*discordant(12, 12)).exact
    assert not mcnemar(*discordant(12, 13)).exact


def test_mcnemar_of_many_is_chi_squared_with_correction() -> None:
    # (|10 - 30| - 1)**2 / 40 = 9.025; with one degree of freedom, erfc(sqrt(x / 2)).
    result = mcnemar(*discordant(10, 30))
    assert result == (10, 30, pytest.approx(math.erfc(math.sqrt(9.025 / 2))), False)
    assert mcnemar(*discordant(20, 20)).p_value == 1.0


def test_confusion_and_accuracy_of_each_class() -> None:
    label, predicted = np.array([0, 0, 0, 1, 3]), np.array([0, 2, 0, 1, 0])
    matrix = confusion(label, predicted, 4)
    expected = [[2, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert matrix.tolist() == expected
    np.testing.assert_equal(per_class_accuracy(matrix), [2 / 3, 1.0, np.nan, 0.0])


def test_calibration_by_hand() -> None:
    confidence = np.array([0.9, 0.95, 0.55, 0.52, 1.0])
    correct = np.array([True, False, True, True, True])
    bins = reliability(confidence, correct, num_bins=10)
    assert [b.videos for b in bins] == [0, 0, 0, 0, 0, 2, 0, 0, 1, 2]
    assert bins[5] == pytest.approx((0.5, 0.6, 2, 0.535, 1.0))
    assert bins[8].accuracy == 1.0  # 0.9 closes its bin
    # 2/5 * |1 - 0.535| + 1/5 * |1 - 0.9| + 2/5 * |0.5 - 0.975|
    assert expected_calibration_error(bins) == pytest.approx(0.396)


def test_calibration_at_its_edges() -> None:
    perfect = reliability(np.ones(3), np.ones(3, bool))
    assert expected_calibration_error(perfect) == 0.0
    assert perfect[-1].videos == 3
    assert expected_calibration_error(reliability(np.zeros(0), np.zeros(0, bool))) == 0.0
    sure_and_wrong = reliability(np.ones(3), np.zeros(3, bool))
    assert expected_calibration_error(sure_and_wrong) == 1.0
