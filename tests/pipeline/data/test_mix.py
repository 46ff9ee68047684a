"""Mixup and CutMix: the same for every layout, labels in proportion to pixels."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from pipeline.data.batch import Batch
from pipeline.data.config import DataConfig, MixConfig
from pipeline.data.errors import DataError
from pipeline.data.loader import build_train_loader
from pipeline.data.mix import Mix, draw_mix, mix_clips, mix_targets
from pipeline.data.shards import Shards

BOTH = MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0)


def batch_at(positions: list[int], views: int = 2, weight: list[float] | None = None) -> Batch:
    count = len(positions)
    return Batch(
        torch.zeros(count, views, 3, 2, 16, 20, dtype=torch.uint8),
        torch.arange(count),
        torch.tensor(weight or [1.0] * count),
        torch.zeros(count, dtype=torch.int64),
        torch.tensor(positions),
        [f"k{p}" for p in positions],
        [],
    )


def test_the_mix_does_not_depend_on_the_micro_batch() -> None:
    whole = draw_mix(batch_at(list(range(40, 56))), BOTH, seed=5)
    parts = [draw_mix(batch_at([p, p + 1]), BOTH, seed=5) for p in range(40, 56, 2)]
    assert torch.equal(whole.share, torch.cat([part.share for part in parts]))
    assert torch.equal(whole.box, torch.cat([part.box for part in parts]))
    assert len(whole.share.unique()) == 16


def test_views_and_seeds_are_mixed_differently() -> None:
    first, other = (draw_mix(batch_at(list(range(16))), BOTH, seed) for seed in (0, 1))
    assert not torch.equal(first.share, other.share)
    shares = first.share.view(8, 2, 2)
    assert torch.equal(shares[:, 0], shares[:, 1])
    assert (shares[..., 0] != shares[..., 1]).all()


@pytest.mark.parametrize("config", [BOTH, MixConfig(mixup_alpha=1.0), MixConfig(cutmix_alpha=1.0)])
def test_labels_follow_the_pixels(config: MixConfig) -> None:
    """Constant clips of different value: the mean pixel tells how much of each is there."""
    batch = batch_at(list(range(32)))
    mix = draw_mix(batch, config, seed=0)
    value = torch.arange(32).repeat_interleave(2).float()
    clips = value.view(-1, 1, 1, 1, 1).expand(-1, 3, 2, 16, 20)
    mixed = mix_clips(clips, mix, views=2)
    targets = mix_targets(batch.label, mix, 2, 32)
    torch.testing.assert_close(mixed.mean((1, 2, 3, 4)), targets @ torch.arange(32.0))
    torch.testing.assert_close(targets.sum(1), torch.ones(64))
    pure = mixed.flatten(1) == mixed.flatten(1)[:, :1]
    is_cut = ((mix.box[:, 1] - mix.box[:, 0]) * (mix.box[:, 3] - mix.box[:, 2])) > 0
    assert not pure[is_cut].all(1).any()
    assert is_cut.any() == (config.cutmix_alpha > 0)


def test_label_smoothing_is_the_loss_of_the_smoothed_target() -> None:
    batch = batch_at([0, 1], views=1)
    mix = draw_mix(batch, MixConfig(mixup_alpha=1.0), seed=0)
    logits = torch.randn(2, 5)
    loss = torch.nn.functional.cross_entropy
    got = loss(logits, mix_targets(batch.label, mix, 1, 5, smoothing=0.1), reduction="none")
    own = loss(logits, batch.label, reduction="none", label_smoothing=0.1)
    other = loss(logits, batch.label.flip(0), reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(got, mix.share * own + (1 - mix.share) * other)


def test_a_sample_without_weight_is_mixed_with_nobody() -> None:
    mix = draw_mix(batch_at([0, 1, 2, 3], weight=[1.0, 0.0, 1.0, 1.0]), BOTH, seed=0)
    assert (mix.share[:4] == 1).all()
    assert (mix.share[4:] < 1).all()
    clips = torch.randn(8, 3, 2, 16, 20)
    assert torch.equal(mix_clips(clips, mix, 2)[:4], clips[:4])


def test_probability_zero_mixes_nothing() -> None:
    off = BOTH.model_copy(update={"probability": 0.0})
    assert not off.is_on
    assert (draw_mix(batch_at([0, 1]), off, seed=0).share == 1).all()


def test_odd_micro_batches_are_refused(train_shards: Shards) -> None:
    config = DataConfig(train="unused", workers=0, mix=BOTH)
    with pytest.raises(DataError, match="micro-batches must be even, not 3"):
        build_train_loader(
            train_shards, config, img_size=8, num_frames=2, seed=0, global_batch=6, micro_batch=3
        )


def test_loader_positions_pair_the_same_samples_for_every_world(train_shards: Shards) -> None:
    config = DataConfig(train="unused", workers=0, mix=BOTH)

    def mixed(world: int, micro: int) -> dict[str, tuple[str, float]]:
        found = {}
        for rank in range(world):
            with build_train_loader(
                train_shards,
                config,
                img_size=16,
                num_frames=2,
                seed=0,
                global_batch=8,
                micro_batch=micro,
                rank=rank,
                world=world,
            ) as loader:
                for batch in islice(loader, loader.batches.accumulation):
                    share = draw_mix(batch, config.mix, seed=0).share.tolist()
                    for row, key in enumerate(batch.keys):
                        found[key] = (batch.keys[row ^ 1], share[row])
        return found

    assert mixed(1, 8) == mixed(2, 2) == mixed(4, 2)


def test_targets_by_hand() -> None:
    """Two views; the first is mixed 0.7 to 0.3 with the partner, the second is not."""
    mix = Mix(torch.tensor([0.7, 1.0, 0.7, 1.0]), torch.zeros(4, 4, dtype=torch.int64))
    label = torch.tensor([0, 2])
    expected = [[0.7, 0, 0.3], [1, 0, 0], [0.3, 0, 0.7], [0, 0, 1]]
    torch.testing.assert_close(mix_targets(label, mix, 2, 3), torch.tensor(expected))
    # Smoothing 0.3 over three classes: 0.7 + 0.1 for the own class, 0.1 for each other.
    smoothed = [[0.59, 0.1, 0.31], [0.8, 0.1, 0.1], [0.31, 0.1, 0.59], [0.1, 0.1, 0.8]]
    found = mix_targets(label, mix, 2, 3, smoothing=0.3)
    torch.testing.assert_close(found, torch.tensor(smoothed))


def test_targets_of_one_label_stay_that_label() -> None:
    mix = Mix(torch.tensor([0.25, 0.25]), torch.zeros(2, 4, dtype=torch.int64))
    assert mix_targets(torch.tensor([1, 1]), mix, 1, 2).tolist() == [[0, 1], [0, 1]]


def test_a_box_at_the_border_counts_the_pixels_that_it_has() -> None:
    """A box of 4 x 4 in 16 x 20 pixels: 16 of 320 are the partner's, in every frame."""
    box = torch.tensor([[0, 4, 16, 20]] * 2)
    mix = Mix(torch.full((2,), 1 - 16 / 320), box)
    clips = torch.stack([torch.zeros(3, 2, 16, 20), torch.ones(3, 2, 16, 20)])
    mixed = mix_clips(clips, mix, views=1)
    assert mixed[0].sum() == 16 * 3 * 2
    assert (mixed[0, :, :, :4, 16:] == 1).all()
    torch.testing.assert_close(mixed[0].mean(), 1 - mix.share[0])
