"""Exact evaluation, in which every sample counts once for any world size and number of views.

A batch holds the same samples in the same rows whatever the number of ranks, and results are put
into the order of the samples before anything is summed, so that all figures agree to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.batch import Batch, normalize
from pipeline.data.config import DataConfig
from pipeline.inference.statistics import Flags, Floats
from pipeline.training.distributed import from_all_ranks
from pipeline.training.tasks.task import Forward


class EvalResult(NamedTuple):
    top1: float
    """Fraction of the videos whose label is the most probable class, in [0, 1]."""
    top5: float
    loss: float
    num_samples: int

    def metrics(self) -> dict[str, float]:
        return {key: float(value) for key, value in self._asdict().items()}


class Predictions(NamedTuple):
    """One prediction for each of N videos."""

    position: Tensor
    """(N,) int64 sample numbers."""
    label: Tensor
    """(N,) int64 class numbers."""
    logits: Tensor
    """(N, classes) float32: logarithm of the class probabilities averaged over the views."""


class Outcomes(NamedTuple):
    """What became of each of N videos, as NumPy arrays."""

    top1: Flags
    top5: Flags
    loss: Floats
    """Cross-entropy of each video, in nats."""


@torch.no_grad()
def evaluate(
    forward: Forward, batches: Iterable[Batch], data: DataConfig, device: torch.device
) -> EvalResult:
    """Average the class probabilities over the views of each video, and compute the metrics.

    Collective: call on every rank with the rank's share of the samples. With fewer than five
    classes, `top5` is 1.
    """
    mine = [
        np.column_stack([part.position.numpy(), *outcomes(part.label, part.logits)])
        for part in predictions(forward, batches, data, device)
    ]
    rows = np.concatenate([np.empty((0, 4)), *mine])
    every = np.concatenate(from_all_ranks(rows))
    _, top1, top5, loss = every[every[:, 0].argsort()].T
    return summarize(Outcomes(top1 > 0, top5 > 0, loss))


@torch.no_grad()
def predictions(
    forward: Forward, batches: Iterable[Batch], data: DataConfig, device: torch.device
) -> Iterator[Predictions]:
    """Yield the predictions of each batch, on the CPU, without padding and unreadable samples."""
    for batch in batches:
        samples, views = batch.clips.shape[:2]
        clips = normalize(batch.clips.to(device, non_blocking=True), data.mean, data.std)
        by_view = F.log_softmax(forward(clips).float().cpu().double(), dim=-1)
        averaged = by_view.view(samples, views, -1).logsumexp(1) - math.log(views)
        counts = batch.weight > 0
        yield Predictions(batch.position[counts], batch.label[counts], averaged[counts].float())


def outcomes(label: Tensor, logits: Tensor) -> Outcomes:
    """Judge predictions. `label` is (N,) int64, `logits` (N, classes) float32."""
    first = logits.argmax(1) == label
    among_five = (logits.topk(min(5, logits.shape[1])).indices == label[:, None]).any(1)
    loss = F.cross_entropy(logits.double(), label, reduction="none")
    return Outcomes(first.numpy(), (first | among_five).numpy(), loss.numpy())


def summarize(found: Outcomes) -> EvalResult:
    """Average the outcomes of all videos, with sums that do not depend on their order."""
    count = len(found.loss)
    seen = max(count, 1)
    top1, top5 = int(found.top1.sum()) / seen, int(found.top5.sum()) / seen
    return EvalResult(top1, top5, _exact_sum(found.loss) / seen, count)


def _exact_sum(values: Floats) -> float:
    # math.fsum refuses a sum of infinities of both signs.
    return math.fsum(values) if np.isfinite(values).all() else float(values.sum())
