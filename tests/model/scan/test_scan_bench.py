"""The contenders of `vmp bench scan` compute the same scan as ours, and the table is printed."""

import io
from typing import Any

import torch
from rich.console import Console

from model.scan import bidirectional_scan
from pipeline.bench import scan as bench


def test_the_published_loop_is_a_peer() -> None:
    tensors: dict[str, Any] = bench.make_tensors((2, 12, 20, 4), torch.float32, "cpu")
    ours, theirs = bidirectional_scan(**tensors), bench.published_loop(tensors)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    leaves, dout = list(tensors.values()), torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(theirs, leaves, dout),
        torch.autograd.grad(ours, leaves, dout),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def test_a_table_is_printed(monkeypatch: Any) -> None:
    monkeypatch.setitem(bench.WIDTHS, "ti", 32)
    printed = io.StringIO()
    console = Console(file=printed, width=200)
    lines = bench.run(["ti"], [1], repeats=1, peers=False, console=console)
    assert {"chunked"} <= {line.name for line in lines}
    assert "forward limits" in printed.getvalue()
    assert all(line.saved for line in lines)
