"""Mixup and CutMix between neighbours in the global order.

Partners are the samples at positions 2j and 2j + 1 of the run. A micro-batch starts at an even
position and has an even size, so partners always share a rank and a micro-batch. The mix of a
sample therefore does not depend on the number of ranks or processes or on the micro-batch size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.batch import Batch
from pipeline.data.config import MixConfig
from pipeline.data.randomness import sample_rng


class Mix(NamedTuple):
    """The mix of each clip of a batch with its partner's view of the same number."""

    share: Tensor
    """(B * V,) float32: weight of the clip's own label; 1 = the clip is not mixed."""
    box: Tensor
    """(B * V, 4) int64: top, bottom, left and right of the partner's box; empty for mixup."""


def draw_mix(batch: Batch, config: MixConfig, seed: int) -> Mix:
    """Draw the mix of a training batch, on the CPU, from seed, epoch and position alone.

    A pair in which a sample has weight 0 is not mixed.
    """
    samples, views, _, _, height, width = batch.clips.shape
    share = torch.ones(samples, views)
    box = torch.zeros(samples, views, 4, dtype=torch.int64)
    pairs = list(zip(batch.epoch.tolist(), batch.position.tolist(), strict=True))[::2]
    for pair, (epoch, position) in enumerate(pairs):
        rows = slice(2 * pair, 2 * pair + 2)
        if not batch.weight[rows].all():
            continue
        for view in range(views):
            rng = sample_rng(seed, epoch, f"position {position}", view, "mix")
            if rng.random() >= config.probability:
                continue
            switch = config.mixup_alpha > 0 and config.cutmix_alpha > 0
            cut = rng.random() < config.switch_probability if switch else config.cutmix_alpha > 0
            alpha = config.cutmix_alpha if cut else config.mixup_alpha
            keep = float(rng.beta(alpha, alpha))
            if cut:
                area = (1 - keep) ** 0.5
                cy, cx = int(rng.integers(height)), int(rng.integers(width))
                h, w = int(height * area), int(width * area)
                top, bottom = max(0, cy - h // 2), min(height, cy + h // 2)
                left, right = max(0, cx - w // 2), min(width, cx + w // 2)
                box[rows, view] = torch.tensor([top, bottom, left, right])
                # The border may clip the box, so the labels' share follows the pixels.
                keep = 1 - (bottom - top) * (right - left) / (height * width)
            share[rows, view] = keep
    return Mix(share.flatten(), box.flatten(0, 1))


def mix_clips(clips: Tensor, mix: Mix, views: int) -> Tensor:
    """Return a mixed copy of normalised clips, (B * V, 3, T, H, W); `mix` is on their device."""
    height, width = clips.shape[-2:]
    top, bottom, left, right = mix.box.view(-1, 4, 1, 1).unbind(1)
    y = torch.arange(height, device=clips.device).view(1, -1, 1)
    x = torch.arange(width, device=clips.device).view(1, 1, -1)
    replaced = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    is_cut = (bottom - top) * (right - left) > 0
    own = torch.where(is_cut, (~replaced).float(), mix.share.view(-1, 1, 1))
    own = own[:, None, None].to(clips.dtype)
    return torch.lerp(_partners(clips, views), clips, own)


def mix_targets(
    label: Tensor, mix: Mix, views: int, num_classes: int, smoothing: float = 0.0
) -> Tensor:
    """Return target probabilities (B * V, num_classes) of mixed clips, for `F.cross_entropy`.

    `label` is (B,) int64. As in timm, smoothing gives every class `smoothing / num_classes`.
    """
    target = F.one_hot(label, num_classes).float() * (1 - smoothing) + smoothing / num_classes
    target = target.repeat_interleave(views, dim=0)
    return torch.lerp(_partners(target, views), target, mix.share[:, None])


def _partners(rows: Tensor, views: int) -> Tensor:
    """Swap partners: row (b, v) of the result is row (b ^ 1, v) of `rows`."""
    return rows.view(-1, 2, views, *rows.shape[1:]).flip(1).view(rows.shape)
