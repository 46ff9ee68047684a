"""Mixup and CutMix between neighbours in the global order.

Partners are the samples at positions 2j and 2j + 1 of the run. A micro-batch starts at an even
position and has an even size, so partners always share a rank and a micro-batch, and the mix of a
sample is the same for every number of ranks, processes and micro-batch sizes.
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
    """How each clip of a batch is mixed with its partner's view of the same number."""

    share: Tensor
    """(B * V,) float32: weight of the clip's own label; 1 = not mixed."""
    box: Tensor
    """(B * V, 4) int64 top, bottom, left, right of what the partner replaces; empty for mixup."""


def draw_mix(batch: Batch, config: MixConfig, seed: int) -> Mix:
    """The mix of a training batch, on the CPU; a function of seed, epoch and position only.

    A sample without weight is mixed with nobody.
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
                # The box may be cut by the border: labels follow the pixels.
                keep = 1 - (bottom - top) * (right - left) / (height * width)
            share[rows, view] = keep
    return Mix(share.flatten(), box.flatten(0, 1))


def mix_clips(clips: Tensor, mix: Mix, views: int) -> Tensor:
    """Mixed copy of normalised (B * V, 3, T, H, W) clips; `mix` on the same device."""
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
    """Class probabilities (B * V, num_classes) of the mixed clips, for `F.cross_entropy`.

    `label` is (B,) int64; smoothing as in timm: `smoothing / num_classes` for every class.
    """
    target = F.one_hot(label, num_classes).float() * (1 - smoothing) + smoothing / num_classes
    target = target.repeat_interleave(views, dim=0)
    return torch.lerp(_partners(target, views), target, mix.share[:, None])


def _partners(rows: Tensor, views: int) -> Tensor:
    """Row (b, v) of the result is row (b ^ 1, v)."""
    return rows.view(-1, 2, views, *rows.shape[1:]).flip(1).view(rows.shape)
