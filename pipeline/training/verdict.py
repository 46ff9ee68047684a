"""What all ranks must know before a step is applied: one reduction, one read of the device."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.training.distributed import World, sum_over_ranks


class Verdict(NamedTuple):
    """The same on every rank."""

    finite: bool
    """Are loss and gradients finite on every rank?"""
    grad_norm: float
    """Global L2 norm of the gradients, in the units of `squared_norm`; NaN or infinity if not."""
    stop: bool
    """Does any rank ask to stop?"""


def reach_verdict(loss: Tensor, squared_norm: Tensor, *, stop: bool, world: World) -> Verdict:
    """Whether this step may be applied and whether it is the last. Collective.

    Args:
        loss: 0-dim; not finite when that of any micro-batch of this rank is not.
        squared_norm: 0-dim; this rank's share of the squared norm of the reduced gradients. The
            shares of all ranks add up to it, and one NaN or infinity among the gradients spoils it.
        stop: does this rank ask to stop?
    """
    double = {"dtype": torch.float64, "device": world.device}
    # A fill on the device, unlike a copy of a host's tensor, waits for nothing.
    flag = torch.full((), float(stop), **double)  # type: ignore[call-overload]
    sums = torch.stack([squared_norm.double(), loss.detach().isfinite().logical_not(), flag])
    squares, bad_losses, stops = sum_over_ranks(sums).tolist()
    return Verdict(
        finite=math.isfinite(squares) and not bad_losses,
        grad_norm=math.sqrt(squares) if squares >= 0 else math.nan,
        stop=bool(stops),
    )
