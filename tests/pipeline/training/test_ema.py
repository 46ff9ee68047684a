"""The moving average of the weights equals its formula."""

from __future__ import annotations

import torch

from pipeline.training.ema import Ema


def test_it_begins_at_the_weights_and_follows_the_formula() -> None:
    weight = torch.tensor([1.0, -2.0])
    ema = Ema(0.75, {"w": weight})
    expected = weight.double().clone()
    for step in range(4):
        weight += step
        ema.update()
        expected = 0.75 * expected + 0.25 * weight.double()
    torch.testing.assert_close(ema.averages["w"].double(), expected, rtol=1e-6, atol=0)


def test_it_keeps_no_view_of_the_weights() -> None:
    weight = torch.ones(2)
    ema = Ema(0.5, {"w": weight})
    weight.zero_()
    assert ema.averages["w"].tolist() == [1.0, 1.0]


def test_swapping_twice_restores_every_bit() -> None:
    weight = torch.tensor([0.1, 0.2])
    ema = Ema(0.9, {"w": weight})
    weight += 1 / 3
    ema.update()
    before, average = weight.clone(), ema.averages["w"].clone()
    ema.swap()
    assert torch.equal(weight, average)
    assert torch.equal(ema.averages["w"], before)
    ema.swap()
    assert torch.equal(weight, before)
    assert torch.equal(ema.averages["w"], average)
