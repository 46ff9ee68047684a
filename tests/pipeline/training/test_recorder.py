"""What a training run reports on the screen and in its files."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from pipeline import rundir
from pipeline.config import load_config
from pipeline.prepare import prepare_run
from pipeline.training.distributed import World
from pipeline.training.recorder import Pace, Recorder
from pipeline.training.train import _start_logs

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return prepare_run(load_config("demo", [f"runs_dir={tmp_path}"]))


def test_a_training_line_tells_how_far_the_run_has_come(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config("demo", [f"runs_dir={run_dir.parent}", "tracking.enabled=false"])
    recorder = Recorder(config, run_dir, ALONE, 0)
    with caplog.at_level(logging.INFO):
        recorder.record(10, "train", {"loss": 2.0, "step_s_p95": 1.0}, pace=Pace(1870, 340.4))
        recorder.record(10, "eval", {"top1": 0.5})
    recorder.close(None, None, None)
    assert [record.message for record in caplog.records] == [
        "step 10/1870, 0:05:40 left, train  loss 2",
        "step 10 eval  top1 0.5",
    ]
    assert '"step_s_p95": 1.0' in (run_dir / rundir.METRICS_FILE).read_text()


def test_every_rank_has_a_log_of_its_own_without_the_chatter_of_libraries(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        _start_logs(World(rank=3, size=4, local_rank=3, device=torch.device("cpu")), run_dir)
        logging.getLogger("pipeline.x").info("ours")
        logging.getLogger("distutils").info("gcc -pthread")
        logging.getLogger("distutils").warning("theirs")
    finally:
        for handler in set(root.handlers) - set(before):
            handler.close()
        root.handlers[:] = before
        root.setLevel(level)
    lines = (run_dir / "logs" / "rank00003.log").read_text().splitlines()
    assert [line.split("rank3 ")[1] for line in lines[1:]] == ["ours", "theirs"]
    assert "one of 4 ranks" in lines[0]
    shown = capsys.readouterr().err.splitlines()  # rank 0 speaks for all
    assert [line.split("rank3 ")[1] for line in shown] == ["theirs"]
