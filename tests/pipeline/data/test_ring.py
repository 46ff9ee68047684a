"""Places of shared memory are used again only when nobody holds their clips."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from pipeline.data.config import DataConfig
from pipeline.data.errors import DataError
from pipeline.data.loader import build_train_loader
from pipeline.data.ring import Ring
from pipeline.data.shards import Shards


def test_a_place_is_free_again_when_its_clips_are_gone() -> None:
    ring = Ring(2, (1, 3))
    place = ring.take()
    ring.places[place] = 7
    clips = ring.hand_out(place)
    part = clips[0, 1:]
    assert clips.data_ptr() == ring.places[place].data_ptr()
    del clips
    assert ring.take() != place
    assert part.tolist() == [7, 7]
    del part
    assert ring.take() == place


def test_the_last_place_is_copied_and_stays_free() -> None:
    ring = Ring(2, (1, 3))
    first, second = ring.take(), ring.take()
    ring.places[first], ring.places[second] = 1, 2
    kept = ring.hand_out(first)
    assert ring.take() == first
    ring.places[first] = 9
    assert kept.tolist() == [[1, 1, 1]]
    assert ring.hand_out(second).tolist() == [[2, 2, 2]]
    assert ring.take() == second


def test_too_little_shared_memory_is_one_line() -> None:
    with pytest.raises(DataError, match="GiB of shared memory"):
        Ring(1, (1 << 50,))


@pytest.mark.parametrize("start", ["forkserver", "fork"])
def test_batches_may_be_kept_for_ever(train_shards: Shards, start: str) -> None:
    """Hands out more batches than there are places; none changes afterwards."""

    def loader(workers: int):
        config = DataConfig(train="unused", workers=workers, worker_start=start)
        return build_train_loader(
            train_shards,
            config,
            img_size=16,
            num_frames=4,
            seed=3,
            global_batch=2,
            micro_batch=2,
        )

    with loader(2) as several:
        kept = list(islice(several, 30))
    with loader(0) as alone:
        for batch, expected in zip(kept, alone, strict=False):
            assert batch.keys == expected.keys
            assert torch.equal(batch.clips, expected.clips)
