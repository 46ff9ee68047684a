"""Choice of the patches that a student of masked pre-training sees.

Legend: B clips, T steps in time, P patches per frame, V visible patches per frame.
"""

from __future__ import annotations

import torch
from torch import Tensor


def num_visible(patches: int, ratio: float) -> int:
    """Return how many of a frame's patches stay visible: all but `ratio` of them, rounded down.

    At least one stays, also where the product of a ratio close to 1 rounds up to all of them.
    """
    return patches - min(int(patches * ratio), patches - 1)


def visible_tubelets(draws: Tensor, steps: int, ratio: float) -> Tensor:
    """Return the patches with the smallest draws, the same at every step.

    draws: (B, P), uniform in [0, 1).
    Returns (B, T * V) int64, the rising numbers t * P + p of patches.
    """
    return _numbers(draws[:, None].expand(-1, steps, -1), ratio)


def visible_by_attention(draws: Tensor, attention: Tensor, ratio: float) -> Tensor:
    """Draw patches without replacement, with probabilities proportional to their attention.

    Patch p of a step wins with the smallest -log(1 - u_p) / a_p, which is exponential with rate
    a_p. The order of these values is that of draws one by one (Efraimidis and Spirakis, 2006), so
    it replaces torch.multinomial, whose stream depends on the device.

    draws: (B, T, P) float64, uniform in [0, 1). attention: (B, T, P), not negative.
    Returns (B, T * V) int64, the rising numbers t * P + p of patches.
    """
    # A patch without attention comes last: its value is infinite, also where its draw is 0.
    races = torch.where(attention > 0, -torch.log1p(-draws) / attention.double(), torch.inf)
    return _numbers(races, ratio)


def _numbers(races: Tensor, ratio: float) -> Tensor:
    """Return the numbers (B, T * V) of the patches with the smallest values (B, T, P)."""
    steps, patches = races.shape[1:]
    order = torch.argsort(races, dim=-1, stable=True)
    chosen = order[..., : num_visible(patches, ratio)].sort(dim=-1).values
    first = torch.arange(steps, device=races.device)[:, None] * patches
    return (chosen + first).flatten(1)
