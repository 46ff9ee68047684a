"""`vmp bench host` runs the operators without launching a kernel, and leaves no trace."""

import pytest
import torch
from typer.testing import CliRunner

from model.scan import available_backends
from model.scan.cuda import launch
from pipeline.bench import host
from pipeline.cli import app


def test_every_operator_has_its_times() -> None:
    threads, load, before = torch.get_num_threads(), launch.load, available_backends("cpu")
    result = CliRunner().invoke(app, ["bench", "host", "--rounds", "2", "--calls", "2"])
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    for operator in ("selective scan", "mixer", "convolution", "RMSNorm"):
        (line,) = [line for line in result.output.splitlines() if operator in line]
        forward, both = (float(cell) for cell in line.replace("│", "").split()[-2:])
        assert 0 < forward < both
    assert (launch.load, available_backends("cpu")) == (load, before)


def test_the_clock_runs_over_all_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 4e-6, 10e-6, 12e-6])
    monkeypatch.setattr(host.time, "thread_time", lambda: next(now))
    ran: list[None] = []
    assert host._microseconds(lambda: ran.append(None), "cpu", 2, 2) == pytest.approx(1.0)
    assert len(ran) == 5
