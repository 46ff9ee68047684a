"""The benchmark of the small kernels runs on any device and counts their bytes."""

import pytest
import torch

from pipeline.bench import rows


def test_each_kernel_is_measured_with_its_bytes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_COPIED_BYTES", 1 << 20)
    cpu = torch.device("cpu")
    lines = rows.measure("ti", 1, 2, torch.bfloat16, cpu, repeats=1)
    elements = 2 * 197 * 384
    assert {line.name: line.bytes for line in lines} == {
        "convolution forward": 4 * elements,
        "convolution backward": 6 * elements,
        "norm forward": 12 * elements // 2,
        "norm backward": 16 * elements // 2,
    }
    assert all(line.seconds > 0 for line in lines)
    rows.run("ti", 1, 1, dtype="float32", device="cpu", repeats=1)
    printed = capsys.readouterr().out
    assert "share of the limit" in printed
    assert "convolution backward" in printed
