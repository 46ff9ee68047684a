"""Number formats of the computation: autocast, TF32, and the loss scale of fp16."""

from __future__ import annotations

from typing import Literal

import torch

from pipeline.checkpoint.layout import LossScaleState

Precision = Literal["fp32", "bf16", "fp16"]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precision -> autocast dtype; fp32 runs without autocast."""

_FIRST_SCALE = 2.0**16
_GROWS_EVERY = 2000
_LARGEST_SCALE = 2.0**24


def resolve_precision(precision: Literal["auto"] | Precision, device: torch.device) -> Precision:
    if precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return precision


def allow_tf32(allowed: bool, device: torch.device) -> None:
    """Allow or forbid TF32, which rounds the factors of fp32 products to 10 bits of mantissa.

    By default torch forbids TF32 for matrix products and allows it for cuDNN's convolutions.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cudnn.allow_tf32 = allowed


class LossScale:
    """A power of two by which fp16 losses are multiplied, so that small gradients do not vanish.

    The scale is halved after a step whose gradients overflow and doubled after 2000 steps without
    overflow. Multiplying by a power of two rounds nothing. All ranks receive the same verdicts, so
    all hold the same scale.
    """

    def __init__(self, precision: Precision) -> None:
        self.is_on = precision == "fp16"
        self.value = _FIRST_SCALE if self.is_on else 1.0
        self._good_steps = 0
        self.skipped = 0
        """Steps so far that were skipped because the scale was too high."""

    def overflows(self, finite: bool) -> bool:
        """Return whether a scale that can still be lowered explains a non-finite step."""
        return self.is_on and not finite and self.value > 1

    def note(self, finite: bool) -> None:
        """Update the scale for the next step from the verdict of this one."""
        if not self.is_on:
            return
        self.skipped += self.overflows(finite)
        self._good_steps = self._good_steps + 1 if finite else 0
        if not finite:
            self.value = max(1.0, self.value / 2)
        elif self._good_steps == _GROWS_EVERY:
            self.value = min(2 * self.value, _LARGEST_SCALE)
            self._good_steps = 0

    @property
    def state(self) -> LossScaleState | None:
        """State for a checkpoint; None when the precision is not fp16."""
        if not self.is_on:
            return None
        return LossScaleState(value=self.value, good_steps=self._good_steps, overflows=self.skipped)

    def restore(self, state: LossScaleState | None) -> None:
        if self.is_on and state is not None:
            self.value, self._good_steps = state.value, state.good_steps
            self.skipped = state.overflows
