"""The seam between the training loop and what a run trains for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from model import VideoMamba
from pipeline.config import RunConfig
from pipeline.data.batch import Batch, normalize, to_device
from pipeline.data.randomness import sample_rng

Forward = Callable[..., Any]
"""An engine or a model: clips (B, 3, T, H, W) float, drop_path_keep (B, depth) bool or None, and
what the student of a task takes besides -> its output."""


class Report(NamedTuple):
    """0-dim sums over a micro-batch, kept on the device so that adding them never waits."""

    weight: Tensor
    """Number of clips that count."""
    sums: Mapping[str, Tensor]
    """Metric name -> sum over those clips; a task reports the same names, `loss` among them, at
    every step."""


class Task(Protocol):
    """What a run trains for. Every rank has one, and all call it at the same time.

    The loop owns order, batches, backward, the step, checkpoints and the stop. A task owns what is
    trained (`student`), the loss (`__call__`) and the measure of success (`evaluate`).
    """

    score: str
    """Metric of `evaluate` by which weights are the best so far; higher is better."""
    teacher_digest: str
    """The sha256 of the frozen teacher's weights, which a resumed run must find again; "" = none.
    """

    def student(self, model: VideoMamba) -> VideoMamba:
        """Return the module to train: `model` itself, or one that begins with its weights."""
        ...

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Report]:
        """Return the 0-dim mean loss of the micro-batch for backward, and sums for the meters.

        The mean divides by the number of clips, zero-weight ones included. The gradient of a sample
        then does not depend on the rank or micro-batch in which the other samples are.
        """
        ...

    def evaluate(self, forward: Forward, batches: Iterable[Batch]) -> dict[str, float]:
        """Return metric name -> value over the samples of all ranks, each counted once.

        `loss`, `num_samples` and the metric `score` are among them. Collective.
        """
        ...


class ClipTask:
    """The parts that tasks on clips share: making the input, and drawing dropped blocks."""

    teacher_digest = ""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config = config
        self.data = config.data
        self.seed = config.seed
        self.device = device

    def student(self, model: VideoMamba) -> VideoMamba:
        return model

    def clips(self, batch: Batch) -> Tensor:
        """Return the normalised clips of all views (B * V, 3, T, S, S) on the device."""
        return normalize(to_device(batch.clips, self.device), self.data.mean, self.data.std)

    def weight(self, batch: Batch) -> Tensor:
        """Return the weight of every view (B * V,) on the device."""
        return to_device(batch.weight, self.device).repeat_interleave(batch.clips.shape[1])

    def drop_path_keep(self, batch: Batch) -> Tensor | None:
        """Draw the blocks that each clip passes through, from (seed, epoch, key, view) alone.

        Returns (B * V, depth) bool, or None when no block is ever dropped.
        """
        rates = self.config.model.drop_path_rates
        if not any(rates):
            return None
        keep = draws(batch, self.seed, "drop_path", (len(rates),)) >= np.asarray(rates)
        return to_device(torch.from_numpy(keep), self.device)


def draws(batch: Batch, seed: int, purpose: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw uniform numbers in [0, 1) for every view of every sample: (B * V, *shape) float64.

    They depend on (seed, epoch, key, view, purpose) alone.
    """
    return np.stack(
        [
            sample_rng(seed, int(epoch), key, view, purpose).random(shape)
            for key, epoch in zip(batch.keys, batch.epoch, strict=True)
            for view in range(batch.clips.shape[1])
        ]
    )
