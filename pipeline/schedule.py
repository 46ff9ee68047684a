"""Learning rate as a pure function of the step: nothing to save, nothing to replay."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ScheduleConfig(BaseModel):
    """Cosine decay with linear warm-up, counted in epochs of the training split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: float = Field(default=50, gt=0)
    warmup_epochs: float = Field(default=5, ge=0)
    warmup_lr: float = Field(default=1e-6, ge=0)
    min_lr: float = Field(default=1e-6, ge=0)
    max_steps: int | None = Field(default=None, gt=0)
    """Stop after this many optimizer steps; the cosine then ends there too."""

    @model_validator(mode="after")
    def _warmup_is_shorter_than_training(self) -> ScheduleConfig:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} must be smaller than epochs={self.epochs}"
            )
        return self


class Schedule:
    """Resolves a `ScheduleConfig` against the number of steps in an epoch."""

    def __init__(self, config: ScheduleConfig, peak_lr: float, steps_per_epoch: int) -> None:
        self.config = config
        self.peak_lr = peak_lr
        full_steps = max(1, round(config.epochs * steps_per_epoch))
        self.total_steps = min(full_steps, config.max_steps or full_steps)
        warmup_share = config.warmup_epochs / config.epochs
        self.warmup_steps = round(warmup_share * self.total_steps)

    def lr(self, step: int) -> float:
        """Learning rate of optimizer step `step`, counted from 0."""
        if step < self.warmup_steps:
            share = (step + 1) / self.warmup_steps
            return self.config.warmup_lr + share * (self.peak_lr - self.config.warmup_lr)
        decay_steps = max(1, self.total_steps - self.warmup_steps)
        share = min(1.0, (step - self.warmup_steps) / decay_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * share))
        return self.config.min_lr + cosine * (self.peak_lr - self.config.min_lr)
