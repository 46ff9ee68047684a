from itertools import pairwise

import pytest

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
