"""Batches: the same samples and pixels for any number of ranks and processes."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from itertools import islice

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.data.batch import Batch, normalize
from pipeline.data.config import CropConfig, DataConfig
from pipeline.data.errors import DataError
from pipeline.data.index import Index
from pipeline.data.loader import build_eval_loader, build_train_loader
from pipeline.data.shards import Shards, open_shards
from pipeline.health.failure import classify
from pipeline.rundir import StopClass

BASE = DataConfig(train="unused", workers=0, crop=CropConfig(scale=(0.3, 1.0)))


def train_batches(
    shards: Shards,
    config: DataConfig = BASE,
    *,
    world: int = 1,
    micro: int = 2,
    start: int = 0,
    steps: int = 1,
    seed: int = 3,
) -> dict[int, tuple[str, torch.Tensor]]:
    """Position -> (key, clips) of `steps` global batches of 8, gathered from all ranks."""
    seen = {}
    for rank in range(world):
        with build_train_loader(
            shards,
            config,
            img_size=16,
            num_frames=4,
            seed=seed,
            global_batch=8,
            micro_batch=micro,
            rank=rank,
            world=world,
            start=start,
        ) as loader:
            for batch in islice(loader, steps * loader.batches.accumulation):
                for row, position in enumerate(batch.position.tolist()):
                    seen[position] = (batch.keys[row], batch.clips[row].clone())
    return dict(sorted(seen.items()))


def assert_same(left: dict, right: dict) -> None:
    assert [(p, key) for p, (key, _) in left.items()] == [(p, key) for p, (key, _) in right.items()]
    assert all(torch.equal(left[p][1], right[p][1]) for p in left)


def test_batch_shapes_and_types(train_shards: Shards) -> None:
    config = BASE.model_copy(update={"views": 2})
    with build_train_loader(
        train_shards,
        config,
        img_size=16,
        num_frames=4,
        seed=0,
        global_batch=4,
        micro_batch=4,
    ) as loader:
        batch = next(loader)
    assert batch.clips.shape == (4, 2, 3, 4, 16, 16)
    assert batch.clips.dtype == torch.uint8
    assert batch.label.dtype == torch.int64
    assert batch.weight.tolist() == [1, 1, 1, 1]
    assert batch.position.tolist() == [0, 1, 2, 3]
    assert len(set(batch.keys)) == 4
    assert loader.wait_s > 0
    assert not torch.equal(batch.clips[:, 0], batch.clips[:, 1])


@pytest.mark.parametrize(("world", "micro"), [(1, 8), (2, 2), (4, 1), (8, 1)])
def test_world_size_changes_nothing(train_shards: Shards, world: int, micro: int) -> None:
    """Eight ranks are more than the seven shards. Four steps cross the end of the first epoch."""
    reference = train_batches(train_shards, steps=4)
    assert_same(train_batches(train_shards, world=world, micro=micro, steps=4), reference)


@pytest.mark.parametrize("start_method", ["forkserver", "fork"])
def test_worker_processes_change_nothing(train_shards: Shards, start_method: str) -> None:
    config = BASE.model_copy(update={"workers": 2, "worker_start": start_method})
    reference = train_batches(train_shards, steps=4)
    assert_same(train_batches(train_shards, config, world=2, steps=4), reference)


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_resuming_with_another_world_continues_the_sequence(train_shards, stop: int) -> None:
    reference = train_batches(train_shards, steps=6)
    seen = train_batches(train_shards, world=4, micro=1, steps=stop)
    seen |= train_batches(train_shards, world=2, start=stop * 8, steps=6 - stop)
    assert_same(seen, reference)


def test_an_epoch_shows_no_sample_twice(train_shards: Shards) -> None:
    keys = [key for key, _ in train_batches(train_shards, steps=3).values()]
    assert len(set(keys)) == 24


def test_seed_and_epoch_change_the_pixels(train_shards: Shards) -> None:
    by_key = [
        dict(train_batches(train_shards, start=start, steps=3, seed=seed).values())
        for start, seed in ((0, 3), (24, 3), (0, 4))
    ]
    for other in by_key[1:]:
        shared = by_key[0].keys() & other.keys()
        assert len(shared) > 10
        assert not any(torch.equal(by_key[0][key], other[key]) for key in shared)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_job_signals_do_not_end_worker_processes(train_shards, signal_number: int) -> None:
    config = BASE.model_copy(update={"workers": 2})
    with build_train_loader(
        train_shards,
        config,
        img_size=16,
        num_frames=4,
        seed=3,
        global_batch=8,
        micro_batch=8,
    ) as loader:
        workers = list(loader.processes)
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker.pid, signal_number)
        seen = [key for batch in islice(loader, 5) for key in batch.keys]
    assert seen[:24] == [key for key, _ in train_batches(train_shards, steps=3).values()]
    assert not any(worker.is_alive() for worker in workers)


def test_workers_leave_the_global_random_state_alone(train_shards: Shards) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    train_batches(train_shards, BASE.model_copy(update={"workers": 1}))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("world", "batch_size"), [(1, 3), (2, 2), (4, 1), (9, 2)])
def test_evaluation_counts_every_sample_once(val_shards, world: int, batch_size: int) -> None:
    ranks: list[list[Batch]] = []
    for rank in range(world):
        loader = build_eval_loader(
            val_shards,
            BASE,
            img_size=16,
            num_frames=4,
            batch_size=batch_size,
            rank=rank,
            world=world,
        )
        ranks.append(list(loader))
        assert len(ranks[-1]) == len(loader)
    batches = [batch for rank in ranks for batch in rank]
    counted = [k for b in batches for k, w in zip(b.keys, b.weight, strict=True) if w]
    assert sorted(counted) == sorted(sample.key for sample in val_shards.samples(range(7)))
    assert {len(batch.keys) for batch in batches} == {batch_size}
    assert sum(float(batch.weight.sum()) for batch in batches) == 7


def eval_batch(shards: Shards, **options: object) -> Batch:
    return next(
        iter(build_eval_loader(shards, BASE, img_size=16, num_frames=4, batch_size=7, **options))
    )


def test_evaluation_views_are_clips_times_crops(val_shards: Shards) -> None:
    many = eval_batch(val_shards, clips=2, crops=3)
    assert many.clips.shape == (7, 6, 3, 4, 16, 16)
    centre = eval_batch(val_shards, clips=2).clips
    assert torch.equal(many.clips[:, [1, 4]], centre)


def test_evaluation_loader_can_be_iterated_again(val_shards: Shards) -> None:
    config = BASE.model_copy(update={"workers": 2})
    loader = build_eval_loader(val_shards, config, img_size=16, num_frames=4, batch_size=2)
    first, second = list(loader), list(loader)
    assert all(torch.equal(a.clips, b.clips) for a, b in zip(first, second, strict=True))


def test_shuffled_frames_are_the_same_frames_in_another_fixed_order(val_shards: Shards) -> None:
    plain = eval_batch(val_shards).clips
    shuffled = eval_batch(val_shards, shuffle_frames=True).clips
    assert torch.equal(shuffled, eval_batch(val_shards, shuffle_frames=True).clips)
    moved = 0
    for left, right in zip(plain[:, 0], shuffled[:, 0], strict=True):
        order = [
            next(t for t in range(4) if torch.equal(left[:, t], right[:, place]))
            for place in range(4)
        ]
        assert sorted(order) == [0, 1, 2, 3]
        moved += order != [0, 1, 2, 3]
    assert moved >= 4


def test_normalize_matches_its_definition() -> None:
    clips = torch.randint(0, 256, (2, 3, 3, 4, 5, 5), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    got = normalize(clips, mean, std)
    channel = [np.array(v).reshape(1, 3, 1, 1, 1) for v in (mean, std)]
    expected = (clips.flatten(0, 1).numpy() / 255 - channel[0]) / channel[1]
    assert got.shape == (6, 3, 4, 5, 5)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)
    assert normalize(clips, mean, std, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.slow
def test_a_corrupt_sample_stops_training_with_one_line(make_shards) -> None:
    directory = make_shards({"train": [8] * 8})
    sample = open_shards(directory).samples([2])[0]
    tar = bytearray((directory / sample.shard).read_bytes())
    tar[sample.offset + 40] ^= 1
    (directory / sample.shard).write_bytes(tar)
    for workers in (0, 1):
        with pytest.raises(DataError, match=f"{sample.key} is corrupt") as caught:
            train_batches(open_shards(directory), BASE.model_copy(update={"workers": workers}))
        assert "\n" not in str(caught.value)


def test_labels_are_needed(make_shards) -> None:
    shards = open_shards(make_shards({"train": [8] * 8}))
    (part,) = shards.index.parts
    unlabelled = part.set_column(
        part.schema.get_field_index("label"), "label", pa.array([-1] * 8, pa.int32())
    )
    with pytest.raises(DataError, match="8 samples have no label"):
        train_batches(Shards(shards.location, shards.manifest, Index((unlabelled,))))


def test_settings_that_cannot_work_are_refused(val_shards: Shards) -> None:
    with (
        pytest.raises(DataError, match="2 crops per clip"),
        closing(
            iter(
                build_eval_loader(val_shards, BASE, img_size=8, num_frames=2, batch_size=1, crops=2)
            )
        ),
    ):
        pass
    with pytest.raises(ValueError, match="scale must be 0 < low <= high"):
        CropConfig(scale=(1.0, 0.5))
    with pytest.raises(ValueError, match="cannot exceed the whole frame"):
        CropConfig(scale=(0.5, 1.5))


@pytest.mark.slow
def test_a_killed_loader_process_is_a_fault_of_the_node(train_shards: Shards) -> None:
    config = BASE.model_copy(update={"workers": 1})
    with build_train_loader(
        train_shards, config, img_size=16, num_frames=4, seed=0, global_batch=4, micro_batch=4
    ) as loader:
        next(loader)
        (worker,) = loader.processes
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError) as caught:
            list(islice(loader, 20))
    assert classify(caught.value) is StopClass.NODE_FAULT
