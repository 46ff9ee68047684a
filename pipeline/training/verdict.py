"""The agreement of all ranks on a step before it is applied: one reduction, one device read."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.training.distributed import World, sum_over_ranks


class Verdict(NamedTuple):
    """The ranks' common judgement of a step, the same on every rank."""

    finite: bool
    """Whether loss and gradients are finite on every rank."""
    grad_norm: float
    """Global L2 norm of the gradients, with the scale of `squared_norm`; it may not be finite."""
    stop: bool
    """Whether any rank asks to stop."""
    loss: float
    """Sum of the losses of all ranks; not finite if that of any micro-batch is not."""


def reach_verdict(loss: Tensor, squared_norm: Tensor, *, stop: bool, world: World) -> Verdict:
    """Agree on whether this step may be applied and whether it is the last. Collective.

    Args:
        loss: 0-dim sum of this rank's losses; not finite if the loss of any micro-batch is not.
        squared_norm: 0-dim share of this rank in the squared norm of the reduced gradients. The
            shares of all ranks sum to it; a NaN or infinity in any gradient makes it non-finite.
        stop: whether this rank asks to stop.
    """
    double = {"dtype": torch.float64, "device": world.device}
    # A fill on the device does not wait, unlike a copy of a host tensor.
    flag = torch.full((), float(stop), **double)  # type: ignore[call-overload]
    loss = loss.detach().double()
    sums = torch.stack([squared_norm.double(), loss.isfinite().logical_not(), flag, loss])
    squares, bad_losses, stops, total = sum_over_ranks(sums).tolist()
    return Verdict(
        finite=math.isfinite(squares) and not bad_losses,
        grad_norm=math.sqrt(squares) if squares >= 0 else math.nan,
        stop=bool(stops),
        loss=total,
    )
