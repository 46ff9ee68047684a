"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class Ema:
    """Moving average of the fp32 weights that this rank holds; it starts as their copy."""

    def __init__(self, decay: float, weights: Mapping[str, torch.Tensor]) -> None:
        """Start the average.

        Args:
            decay: fraction of the average that each update keeps.
            weights: name -> fp32 view, any shape, that the optimizer's steps change in place.
        """
        self.decay = decay
        self._weights = dict(weights)
        self.averages = {name: view.clone() for name, view in weights.items()}

    def update(self) -> None:
        """Set average = decay * average + (1 - decay) * weight, after a step was applied."""
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.averages.values()), list(self._weights.values()), 1 - self.decay
            )

    def swap(self) -> None:
        """Exchange the averages with the weights; a second call restores both, bit for bit."""
        with torch.no_grad():
            for name, weight in self._weights.items():
                average = self.averages[name].clone()
                self.averages[name].copy_(weight)
                weight.copy_(average)
