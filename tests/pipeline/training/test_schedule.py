import math
from itertools import pairwise

import pytest

from pipeline.config import load_config
from pipeline.training.config import ScheduleConfig
from pipeline.training.schedule import Schedule


def test_warms_up_linearly_then_falls_as_a_cosine_to_min_lr() -> None:
    config = ScheduleConfig(epochs=10, warmup_epochs=2, warmup_lr=0.0, min_lr=0.1)
    schedule = Schedule(config, peak_lr=1.0, steps_per_epoch=5)
    rates = [schedule.lr(step) for step in range(schedule.total_steps)]
    assert schedule.total_steps == 50
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[30] == pytest.approx(0.55)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert schedule.lr(50) == pytest.approx(0.1)


def test_max_steps_ends_the_schedule_and_shortens_the_warm_up_with_it() -> None:
    config = ScheduleConfig(epochs=10, warmup_epochs=5, max_steps=20)
    schedule = Schedule(config, peak_lr=1.0, steps_per_epoch=100)
    assert schedule.total_steps == 20
    assert schedule.warmup_steps == 10


def test_no_warm_up() -> None:
    schedule = Schedule(ScheduleConfig(epochs=1, warmup_epochs=0), peak_lr=2.0, steps_per_epoch=4)
    assert schedule.lr(0) == 2.0


def test_the_warm_up_of_a_published_recipe_by_hand() -> None:
    """K400, M f16: 240,436 videos in steps of 256 are 939 steps; 5 of 50 epochs warm up."""
    config = load_config("k400_m16_f16")
    schedule = Schedule(config.schedule, config.optim.lr, 240_436 // 256)
    assert (schedule.total_steps, schedule.warmup_steps) == (46_950, 4_695)
    assert schedule.lr(0) == pytest.approx(2e-6 + (2e-4 - 2e-6) / 4_695)
    assert schedule.lr(4_694) == pytest.approx(2e-4)
    assert schedule.lr(4_695 + 42_255 // 3) == pytest.approx(2e-6 + 0.75 * (2e-4 - 2e-6), rel=1e-4)
    assert schedule.lr(46_950) == pytest.approx(2e-6)


def test_a_rate_that_ends_where_it_begins_stays_there() -> None:
    """ImageNet-1K at 448 px: lr = min_lr = 5e-6 after a warm-up from 1e-6."""
    config = load_config("in1k_s16_448")
    schedule = Schedule(config.schedule, config.optim.lr, 600)
    assert schedule.warmup_steps == 1000
    assert schedule.lr(499) == pytest.approx(3e-6)
    assert {schedule.lr(step) for step in (1000, 3000, 5999)} == {5e-6}


@pytest.mark.parametrize(
    ("fields", "steps_per_epoch", "expected"),
    [
        ({"epochs": 1, "warmup_epochs": 0}, 1, [2.0, 0.0]),
        ({"epochs": 1, "warmup_epochs": 0}, 2, [2.0, 1.0, 0.0]),
        ({"epochs": 2, "warmup_epochs": 1}, 1, [2.0, 2.0, 0.0]),  # one step up, one step at the top
        ({"epochs": 2, "warmup_epochs": 1, "warmup_lr": 1.0}, 2, [1.5, 2.0, 2.0, 1.0, 0.0]),
        ({"epochs": 1, "warmup_epochs": 0.1}, 4, None),  # 0.4 of a step is none
        ({"epochs": 0.5, "warmup_epochs": 0.25}, 4, [2.0, 2.0, 0.0]),
        ({"epochs": 10, "warmup_epochs": 0, "max_steps": 1}, 9, [2.0, 0.0]),
        ({"epochs": 1, "warmup_epochs": 0, "max_steps": 99}, 2, [2.0, 1.0, 0.0]),
        ({"epochs": 1, "warmup_epochs": 0, "min_lr": 2.0}, 3, [2.0, 2.0, 2.0, 2.0]),
        ({"epochs": 0.01, "warmup_epochs": 0}, 3, [2.0, 0.0]),  # at least one step
    ],
)
def test_short_schedules_by_hand(
    fields: dict[str, float], steps_per_epoch: int, expected: list[float] | None
) -> None:
    config = ScheduleConfig.model_validate({"warmup_lr": 0.0, "min_lr": 0.0} | fields)
    schedule = Schedule(config, peak_lr=2.0, steps_per_epoch=steps_per_epoch)
    if expected is None:
        expected = [1 + math.cos(math.pi * step / 4) for step in range(5)]
    assert schedule.total_steps == len(expected) - 1
    assert [schedule.lr(step) for step in range(len(expected))] == pytest.approx(expected)
    assert schedule.lr(10**6) == schedule.lr(schedule.total_steps)


def test_a_warm_up_as_long_as_the_training_is_refused() -> None:
    with pytest.raises(ValueError, match=r"warmup_epochs=2\.0 must be smaller than epochs=2"):
        ScheduleConfig(epochs=2, warmup_epochs=2)
