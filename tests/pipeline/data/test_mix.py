"""Mixup and CutMix: the same for every layout, labels in proportion to pixels."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from pipeline.data.batch import Batch
from pipeline.data.config import DataConfig, MixConfig
from pipeline.data.errors import DataError
from pipeline.data.loader import build_train_loader
from pipeline.data.mix import draw_mix, mix_clips, mix_targets
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
