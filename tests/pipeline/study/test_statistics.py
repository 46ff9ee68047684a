from __future__ import annotations

import pytest

from pipeline.inference.statistics import wilson_of_share
from pipeline.study.statistics import Estimate, estimate


def test_a_t_interval_by_hand() -> None:
    # mean 4, sd 2, n 3: 4.303 * 2 / sqrt(3)
    found = estimate([2.0, 4.0, 6.0])
    assert found == pytest.approx((4.0, 4.9687, 3), rel=1e-4)
    # sd sqrt(2), n 2: 12.706 * sqrt(2) / sqrt(2)
    assert estimate([0.0, 2.0]) == pytest.approx((1.0, 12.706, 2))


def test_one_run_has_no_interval_and_none_no_estimate() -> None:
    assert estimate([0.5]) == Estimate(0.5, None, 1)
    assert estimate([]) is None
    assert Estimate(0.5, None, 1).percent() == "50.0"
    assert not Estimate(0.5, None, 1).excludes_zero


def test_shown_in_percent_and_in_points() -> None:
    assert Estimate(0.912, 0.0134, 3).percent() == "91.2 ± 1.3"
    assert Estimate(0.02, 0.01, 3).percent(signed=True) == "+2.0 ± 1.0"
    assert Estimate(0.02, 0.01, 3).excludes_zero
    assert not Estimate(-0.02, 0.03, 3).excludes_zero


def test_wilson_by_hand() -> None:
    # Half of 100: (0.5 + 0.019208) / 1.038416 -+ 0.0962
    assert wilson_of_share(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson_of_share(1.0, 100)[1] == pytest.approx(1.0)
