"""What is a spike and what is not, on losses written by hand."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipeline.errors import SpikeError
from pipeline.training.config import StabilityConfig
from pipeline.training.spikes import SpikeWatch

LEVEL = [1.8, 1.9, 2.0, 2.1, 2.2, 1.8, 1.9, 2.0, 2.1, 2.2]
"""Median 2.0; the deviations are 0.2, 0.1, 0, 0.1, 0.2 twice, with median 0.1."""


def watch_of(**fields: object) -> SpikeWatch:
    own = {"rollback": True, "window_steps": 10, "threshold": 4.0, "min_rise": 0.0, **fields}
    return SpikeWatch(StabilityConfig.model_validate(own))


def fill(watch: SpikeWatch) -> SpikeWatch:
    for step, loss in enumerate(LEVEL):
        watch.watch(step, loss)
    return watch


def test_the_limit_is_median_and_median_deviation() -> None:
    assert fill(watch_of()).limit() == pytest.approx(2.0 + 4 * 1.4826 * 0.1)
    assert fill(watch_of(min_rise=0.7)).limit() == pytest.approx(2.7)


def test_nothing_is_a_spike_before_the_window_is_full() -> None:
    watch = watch_of(spikes_in_a_row=1)
    watch.watch(0, 2.0)
    watch.watch(1, 1e9)
    assert watch.limit() is None


def test_a_single_outlier_in_the_window_moves_the_limit_little() -> None:
    """Mean and standard deviation would put the limit above 300."""
    watch = watch_of()
    for step, loss in enumerate([*LEVEL[:9], 100.0]):
        watch.watch(step, loss)
    limit = watch.limit()
    assert limit is not None
    assert limit == pytest.approx(2.0 + 4 * 1.4826 * 0.1)


def test_so_many_in_a_row_raise_and_name_their_steps() -> None:
    watch = fill(watch_of())
    watch.watch(10, 3.0)
    watch.watch(11, 3.5)
    watch.watch(12, 2.0)  # the row is over
    watch.watch(13, 3.0)
    watch.watch(14, 3.0)
    with pytest.raises(SpikeError, match=r"loss of 4 at step 15 is above .*, 3 in a row") as raised:
        watch.watch(15, 4.0)
    assert raised.value.steps == (13, 14, 15)


def test_a_loss_at_the_limit_and_falling_losses_are_none() -> None:
    watch = fill(watch_of(spikes_in_a_row=1))
    limit = watch.limit()
    assert limit is not None
    watch.watch(10, limit)
    for step in range(11, 40):
        watch.watch(step, 2.0 - step / 40)


def test_even_losses_need_a_rise() -> None:
    watch = watch_of(min_rise=0.5, spikes_in_a_row=1)
    for step in range(10):
        watch.watch(step, 0.01)
    watch.watch(10, 0.5)
    with pytest.raises(SpikeError):
        watch.watch(11, 0.52)


def test_history_makes_a_resumed_watch_decide_the_same() -> None:
    watch = fill(watch_of())
    watch.watch(10, 3.0)
    resumed = watch_of()
    resumed.restore(watch.history)
    assert resumed.history == watch.history
    for each in (watch, resumed):
        each.watch(11, 3.0)
        with pytest.raises(SpikeError) as raised:
            each.watch(12, 3.0)
        assert raised.value.steps == (10, 11, 12)


def test_off_watches_nothing() -> None:
    watch = watch_of(rollback=False, spikes_in_a_row=1)
    for step, loss in enumerate([*LEVEL, 1e9]):
        watch.watch(step, loss)
    assert watch.history.losses == ()


def test_a_checkpoint_older_than_the_batches_at_fault_must_be_kept() -> None:
    with pytest.raises(ValidationError, match="must be at least spikes_in_a_row"):
        StabilityConfig(checkpoint_every_steps=3, spikes_in_a_row=3, skip_before=1)
