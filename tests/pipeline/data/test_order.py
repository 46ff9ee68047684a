"""The order of samples: exact for any world size, micro-batch and place to resume."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.errors import DataError
from pipeline.data.order import ElasticBatches, ExactBatches, Slot
from pipeline.data.randomness import shuffled


def order_of(num_samples: int):
    return lambda epoch: shuffled(num_samples, "test", epoch)


def union(num_samples: int, world: int, micro: int, global_batch: int, start: int, steps: int):
    """Slots of `steps` global batches, gathered from all ranks, in order of position."""
    slots: list[Slot] = []
    for rank in range(world):
        batches = ElasticBatches(
            order_of(num_samples), num_samples, global_batch, micro, rank, world, start
        )
        for micro_batch in islice(batches, steps * batches.accumulation):
            assert len(micro_batch) == micro
            slots += micro_batch
    return sorted(slots, key=lambda slot: slot.position)


def reference(num_samples: int, global_batch: int, stop: int) -> list[Slot]:
    """The exact global order, written down without batches, ranks or resumption."""
    shown = num_samples // global_batch * global_batch
    epochs = -(-stop // shown)
    rows = np.concatenate([order_of(num_samples)(e)[:shown] for e in range(epochs)])
    return [Slot(p // shown, p, int(row)) for p, row in enumerate(rows[:stop])]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_union_of_ranks_is_the_global_order_for_any_stop_and_resume(data: st.DataObject) -> None:
    worlds = st.sampled_from([1, 2, 3, 4])
    world, resumed_world = data.draw(worlds), data.draw(worlds)
    micro, resumed_micro = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    global_batch = int(np.lcm(world * micro, resumed_world * resumed_micro))
    num_samples = data.draw(st.integers(global_batch, 5 * global_batch + 7))
    steps, more = data.draw(st.integers(0, 12)), data.draw(st.integers(1, 12))

    stop = steps * global_batch
    seen = union(num_samples, world, micro, global_batch, 0, steps)
    seen += union(num_samples, resumed_world, resumed_micro, global_batch, stop, more)
    assert seen == reference(num_samples, global_batch, stop + more * global_batch)


def test_a_stop_within_the_epoch_loses_and_repeats_nothing() -> None:
    num_samples, global_batch = 26, 6
    seen = union(num_samples, 2, 3, global_batch, 0, 3) + union(num_samples, 3, 1, 6, 18, 1)
    assert len({slot.row for slot in seen}) == 24
    assert {slot.epoch for slot in seen} == {0}


def test_epoch_boundary_starts_a_new_permutation() -> None:
    first, second = (union(24, 2, 2, 8, start, 3) for start in (0, 24))
    assert {slot.row for slot in first} == {slot.row for slot in second} == set(range(24))
    assert [slot.row for slot in first] != [slot.row for slot in second]
    assert {slot.epoch for slot in second} == {1}


def test_rank_takes_every_worldth_micro_batch() -> None:
    batches = ElasticBatches(order_of(16), 16, 8, 2, rank=1, world=2)
    positions = [[slot.position for slot in micro] for micro in islice(batches, 2)]
    assert positions == [[2, 3], [6, 7]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"global_batch": 6, "micro_batch": 4}, "not a multiple of micro_batch 4 x 1"),
        ({"global_batch": 8, "micro_batch": 4, "world": 3}, "4 x 3 ranks"),
        ({"global_batch": 32, "micro_batch": 4}, "20 samples do not fill"),
        ({"global_batch": 8, "micro_batch": 4, "start": 12}, "position 12 is not a multiple"),
        ({"global_batch": 8, "micro_batch": 0}, "not a multiple"),
        ({"global_batch": 8, "micro_batch": 4, "rank": 2, "world": 2}, "rank 2 outside"),
    ],
)
def test_impossible_batches_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ElasticBatches(order_of(20), 20, **arguments)


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 9))
def test_evaluation_shows_every_sample_once(num: int, batch: int, world: int) -> None:
    ranks = [list(ExactBatches(num, batch, rank, world)) for rank in range(world)]
    assert sorted(i for rank in ranks for rows in rank for i in rows) == list(range(num))
    assert len({len(rank) for rank in ranks}) == 1
    assert len(ranks[0]) == len(ExactBatches(num, batch, 0, world))


@given(st.integers(0, 200), st.integers(0, 9))
def test_shuffled_is_a_permutation_that_its_name_decides(count: int, seed: int) -> None:
    order = shuffled(count, "samples", seed)
    assert sorted(order) == list(range(count))
    assert (order == shuffled(count, "samples", seed)).all()


def test_shuffled_is_the_same_in_every_release() -> None:
    assert shuffled(8, "samples", 0, 0).tolist() == [4, 6, 7, 5, 3, 0, 2, 1]
