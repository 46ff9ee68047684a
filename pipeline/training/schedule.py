"""The learning rate as a pure function of the step, so that no state is saved or replayed."""

from __future__ import annotations

import math

from pipeline.training.config import ScheduleConfig


class Schedule:
    """The schedule of a `ScheduleConfig` for a given number of steps per epoch."""

    def __init__(self, config: ScheduleConfig, peak_lr: float, steps_per_epoch: int) -> None:
        self.config = config
        self.peak_lr = peak_lr
        full_steps = max(1, round(config.epochs * steps_per_epoch))
        self.total_steps = min(full_steps, config.max_steps or full_steps)
        warmup_share = config.warmup_epochs / config.epochs
        self.warmup_steps = round(warmup_share * self.total_steps)

    def lr(self, step: int) -> float:
        """Return the learning rate of optimizer step `step`, counted from 0."""
        if step < self.warmup_steps:
            share = (step + 1) / self.warmup_steps
            return self.config.warmup_lr + share * (self.peak_lr - self.config.warmup_lr)
        decay_steps = max(1, self.total_steps - self.warmup_steps)
        share = min(1.0, (step - self.warmup_steps) / decay_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * share))
        return self.config.min_lr + cosine * (self.peak_lr - self.config.min_lr)
