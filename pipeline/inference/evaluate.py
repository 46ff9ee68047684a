"""Exact evaluation, in which every sample counts once for any world size and number of views."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from pipeline.data.batch import Batch, normalize
from pipeline.data.config import DataConfig
from pipeline.training.distributed import sum_over_ranks
from pipeline.training.tasks.task import Forward


class EvalResult(NamedTuple):
    top1: float
    """Fraction of the videos whose label is the most probable class, in [0, 1]."""
    top5: float
    loss: float
    num_samples: int

    def metrics(self) -> dict[str, float]:
        return {key: float(value) for key, value in self._asdict().items()}


@torch.no_grad()
def evaluate(
    forward: Forward, batches: Iterable[Batch], data: DataConfig, device: torch.device
) -> EvalResult:
    """Average the class probabilities over the views of each video, and compute the metrics.

    Collective: call on every rank with the rank's share of the samples. With fewer than five
    classes, `top5` is 1.
    """
    # In float64, counts of millions of samples stay exact.
    totals = torch.zeros(4, dtype=torch.float64)
    for batch in batches:
        samples, views = batch.clips.shape[:2]
        clips = normalize(batch.clips.to(device, non_blocking=True), data.mean, data.std)
        logits = forward(clips).float()
        probabilities = F.softmax(logits, dim=-1).view(samples, views, -1).mean(1).cpu()
        weight = batch.weight.double()
        ranked = probabilities.topk(min(5, probabilities.shape[1])).indices
        hits = (ranked == batch.label[:, None]).double() * weight[:, None]
        true = probabilities.gather(1, batch.label[:, None])[:, 0].clamp_min(1e-12)
        totals += torch.stack(
            [hits[:, 0].sum(), hits.sum(), -(true.double().log() * weight).sum(), weight.sum()]
        )
    top1, top5, loss, count = sum_over_ranks(totals).tolist()
    seen = max(count, 1.0)
    return EvalResult(top1 / seen, top5 / seen, loss / seen, int(count))
