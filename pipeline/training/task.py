"""The training objective: from a batch and a model to a loss and its report."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.batch import Batch, normalize, to_device
from pipeline.data.config import DataConfig
from pipeline.data.mix import Mix, draw_mix, mix_clips, mix_targets
from pipeline.data.randomness import sample_rng
from pipeline.training.config import LossConfig

Forward = Callable[..., Tensor]
"""clips (B, 3, T, H, W) float, drop_path_keep (B, depth) bool or None -> logits (B, classes)."""


class Report(NamedTuple):
    """0-dim sums over a micro-batch, kept on the device so that adding them never waits."""

    loss: Tensor
    correct: Tensor
    weight: Tensor


class ClassificationTask:
    """Cross-entropy over the views of labelled clips."""

    def __init__(
        self,
        loss: LossConfig,
        data: DataConfig,
        *,
        drop_path_rates: tuple[float, ...],
        seed: int,
        device: torch.device,
        every_step: bool = False,
    ) -> None:
        """With `every_step`, the model answers after each step, and the later half counts."""
        self.loss = loss
        self.data = data
        self.drop_path_rates = drop_path_rates
        self.seed = seed
        self.device = device
        self.every_step = every_step

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Report]:
        """Return the 0-dim mean loss of the micro-batch for backward, and sums for the meters.

        The mean divides by the number of clips, zero-weight ones included. The gradient of a sample
        then does not depend on the rank or micro-batch in which the other samples are.
        """
        views = batch.clips.shape[1]
        clips = normalize(to_device(batch.clips, self.device), self.data.mean, self.data.std)
        label = to_device(batch.label, self.device)
        weight = to_device(batch.weight, self.device).repeat_interleave(views)
        mix = self._draw_mix(batch)
        if mix is not None:
            clips = mix_clips(clips, mix, views)
        options = {"every_step": True} if self.every_step else {}
        keep = self._drop_path_keep(batch, views)
        logits = forward(clips, drop_path_keep=keep, **options).float()
        answers = logits.unbind(1)[logits.shape[1] // 2 :] if self.every_step else (logits,)
        losses = torch.stack([self._losses(each, label, mix, views) for each in answers]).mean(0)
        logits = answers[-1]
        weighted = losses * weight
        correct = (logits.detach().argmax(-1) == label.repeat_interleave(views)) * weight
        report = Report(weighted.detach().sum(), correct.sum(), weight.sum())
        return weighted.mean(), report

    def _losses(self, logits: Tensor, label: Tensor, mix: Mix | None, views: int) -> Tensor:
        """Return the cross-entropy (B * views,) of logits (B * views, classes)."""
        smoothing = self.loss.label_smoothing
        if mix is not None:
            targets = mix_targets(label, mix, views, logits.shape[-1], smoothing)
            return F.cross_entropy(logits, targets, reduction="none")
        label = label.repeat_interleave(views)
        return F.cross_entropy(logits, label, reduction="none", label_smoothing=smoothing)

    def _draw_mix(self, batch: Batch) -> Mix | None:
        if not self.data.mix.is_on:
            return None
        mix = draw_mix(batch, self.data.mix, self.seed)
        return Mix(*(to_device(tensor, self.device) for tensor in mix))

    def _drop_path_keep(self, batch: Batch, views: int) -> Tensor | None:
        """Draw the blocks that each clip passes through, from (seed, epoch, key, view) alone.

        Returns (B * views, depth) bool, or None when no block is ever dropped.
        """
        if not any(self.drop_path_rates):
            return None
        draws = [
            sample_rng(self.seed, int(epoch), key, view, "drop_path").random(
                len(self.drop_path_rates)
            )
            for key, epoch in zip(batch.keys, batch.epoch, strict=True)
            for view in range(views)
        ]
        keep = np.stack(draws) >= np.asarray(self.drop_path_rates)
        return to_device(torch.from_numpy(keep), self.device)
