"""The scan that leaves this package computes what the reference computes."""

from __future__ import annotations

import itertools

import pytest
import torch

from model.scan.portable import scan_portable
from model.scan.problem import Scan
from model.scan.reference import scan_reference

B, D, L, N = 2, 6, 7, 3


def made(**options: bool) -> Scan:
    draw = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    both = options.pop("both")
    return Scan(
        u=tensor(B, D, L),
        delta=tensor(B, D, L),
        A=-tensor(D, N).exp(),
        B=tensor(B, N, L),
        C=tensor(B, 2, N, L),
        D=tensor(D),
        z=tensor(B, D, L),
        delta_bias=tensor(D),
        delta_softplus=True,
        A_b=-tensor(D, N).exp() if both else None,
        **options,
    )


@pytest.mark.parametrize(
    ("both", "first_token", "mask_current"), list(itertools.product([False, True], repeat=3))
)
def test_equals_the_reference(both: bool, first_token: bool, mask_current: bool) -> None:
    scan = made(both=both, first_token=first_token, mask_current=mask_current)
    for found, expected in zip(scan_portable(scan), scan_reference(scan), strict=True):
        torch.testing.assert_close(found, expected)
