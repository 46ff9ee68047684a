"""Linear maps whose bits do not depend on how many steps in time are computed at once.

A matrix library rounds a row differently when the product has another number of rows. A causal
model that gets its frames in pieces would therefore differ in the last bits from the same model on
the whole clip. On a CPU and without gradients, its products are computed one step at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def linear_by_step(x: Tensor, weight: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    """F.linear of x (..., L, in), L a multiple of `rows`, in products of `rows` rows each.

    With gradients, on other devices and under torch.compile, it is one product.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    # A fresh copy of each block has the alignment of a fresh tensor, whatever it was cut from.
    blocks = x.reshape(-1, rows, x.shape[-1])
    products = [F.linear(block.clone(), weight, bias) for block in blocks]
    return torch.stack(products).view(*x.shape[:-1], -1)


class StepLinear(nn.Linear):
    """A linear layer on the tokens of several steps in time, of `rows` tokens each."""

    def __init__(self, in_features: int, out_features: int, *, rows: int, bias: bool) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        """x (..., L, in) -> (..., L, out), L a multiple of `rows`."""
        return linear_by_step(x, self.weight, self.bias, self.rows)


def linear(in_features: int, out_features: int, *, rows: int | None, bias: bool) -> nn.Linear:
    """A layer that computes step by step, or, without `rows`, a plain one."""
    if rows is None:
        return nn.Linear(in_features, out_features, bias=bias)
    return StepLinear(in_features, out_features, rows=rows, bias=bias)
