"""The exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class Ema:
    """Of the fp32 weights that this rank holds; it begins as a copy of them."""

    def __init__(self, decay: float, weights: Mapping[str, torch.Tensor]) -> None:
        """`weights`: name -> view that the optimizer's steps change in place."""
        self.decay = decay
        self._weights = dict(weights)
        self.averages = {name: view.clone() for name, view in weights.items()}

    def update(self) -> None:
        """average = decay * average + (1 - decay) * weight; call it after a step was applied."""
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.averages.values()), list(self._weights.values()), 1 - self.decay
            )

    def swap(self) -> None:
        """Exchange averages and weights; a second time restores both, bit for bit."""
        with torch.no_grad():
            for name, weight in self._weights.items():
                average = self.averages[name].clone()
                self.averages[name].copy_(weight)
                weight.copy_(average)
