"""What `vmp bench gpu` does before a GPU is needed, and that its checks can fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.scan import bidirectional_scan, causal_conv1d_silu
from pipeline.bench import gpu, gpu_errors
from pipeline.errors import ConfigError

CASE = [((2, 20, 33, 8), torch.float32)]


def test_a_right_backend_is_found_right() -> None:
    told: list[str] = []
    assert gpu_errors.scan_errors(CASE, "cpu", told.append, "chunked") == []
    assert [line.partition(": worst")[0] for line in told] == [
        "scan (2, 20, 33, 8) torch.float32 shared",
        "scan (2, 20, 33, 8) torch.float32 separate",
    ]
    assert gpu_errors.around_errors("cpu", told.append, "torch") == []


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_a_wrong_backend_is_found_wrong(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    def wrong_scan(*arguments: Tensor, **named: Any) -> Tensor:
        out = bidirectional_scan(*arguments, **named)
        return out * factor if named["u"].dtype == torch.float32 else out

    def wrong_convolution(x: Tensor, *arguments: Any, **named: Any) -> Tensor:
        return causal_conv1d_silu(x, *arguments, **named) * (1 if x.dtype == torch.float64 else 2)

    monkeypatch.setattr(gpu_errors, "bidirectional_scan", wrong_scan)
    monkeypatch.setattr(gpu_errors, "causal_conv1d_silu", wrong_convolution)
    told: list[str] = []
    assert gpu_errors.scan_errors(CASE, "cpu", told.append, "chunked") == told != []
    assert len(gpu_errors.around_errors("cpu", told.append, "torch")) == 3


def test_two_runs_that_differ_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def shaky(*arguments: Tensor, **named: Any) -> Tensor:
        out = bidirectional_scan(*arguments, **named)
        return out + 1e-6 * torch.rand_like(out)

    monkeypatch.setattr(gpu_errors, "bidirectional_scan", shaky)
    wrong = gpu_errors.scan_errors(CASE, "cpu", str, "chunked")
    assert [line.rpartition("; ")[2] for line in wrong] == ["TWO RUNS DIFFER"] * 2


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    told: list[str] = []
    monkeypatch.setattr(gpu.cuda, "why_unavailable", lambda _: None)
    with pytest.raises(ConfigError, match=r"/file/results: cannot be made: Not a dir"):
        gpu.bench_gpu(gpu.PARTS, tmp_path / "file/results", told.append)
    assert told == []


def test_a_sanitizer_that_finds_something_makes_the_kernels_unclean(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "compute-sanitizer"
    program.write_text('#!/bin/sh\necho "ERROR SUMMARY: 1 error"\n[ "$2" = memcheck ]\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    told: list[str] = []
    assert gpu.sanitize(told.append) == ["racecheck found errors"]
    assert told[0].startswith("memcheck: ERROR SUMMARY: 1 error (")


@pytest.mark.slow
def test_the_step_is_measured_and_its_failure_is_told() -> None:
    tiny = ["model.preset=videomambapro-tiny-test", "batch.global_size=4", "batch.max_micro=4"]
    told: list[str] = []

    lines, wrong = gpu.time_step(
        ["demo", *tiny, "--rounds", "1", "--contenders", "plain-torch"], told.append
    )
    assert wrong == []
    assert any("plain torch" in line for line in lines)

    lines, wrong = gpu.time_step(["demo", "--contenders", "nobody"], told.append)
    assert (lines, wrong) == ([], ["the step ended with status 2"])
    assert "--contenders nobody: unknown" in told[-1]
