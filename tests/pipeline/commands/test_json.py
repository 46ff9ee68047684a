"""What `--json` prints for programs has the numbers of the page for people."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config import load_config
from pipeline.prepare import prepare_run

RUN = CliRunner()


def printed(*arguments: str) -> Any:
    ran = RUN.invoke(app, [*arguments, "--json"])
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.output)


def test_the_jobs(tmp_path: Path) -> None:
    run_dir = prepare_run(load_config("demo", ["name=a", f"runs_dir={tmp_path}"]))
    row = {"step": 3, "kind": "train", "time": 1, "loss": 0.5}
    (run_dir / "metrics.jsonl").write_text(json.dumps(row))
    (found,) = printed("jobs", "list", "--runs", str(tmp_path))
    assert (found["name"], found["step"], found["loss"]) == ("a", 3, 0.5)
    assert (found["checkpoint"], found["eta_s"]) == (None, None)


def test_a_loss_that_is_not_finite_is_null(tmp_path: Path) -> None:
    run_dir = prepare_run(load_config("demo", ["name=a", f"runs_dir={tmp_path}"]))
    row = '{"step": 3, "kind": "train", "time": 1, "loss": NaN}'
    (run_dir / "metrics.jsonl").write_text(row)
    assert printed("jobs", "list", "--runs", str(tmp_path))[0]["loss"] is None


def test_the_plan() -> None:
    plan = printed(
        "plan", "demo", "--world", "2", "--gpus-per-node", "1", "--samples", "6000",
        "--step-s", "3.6",
    )  # fmt: skip
    assert (plan["steps_per_epoch"], plan["steps"]) == (187, 1870)
    assert plan["node_hours"] == pytest.approx(1.87 * 2)
    assert set(plan["memory_gib"]) == {"0", "1", "2", "3"}
    page = RUN.invoke(app, ["plan", "demo", "--world", "2", "--samples", "6000"]).output
    assert f"{plan['parameters']:,}" in page
    assert "187 (6,000 clips)" in page


def test_the_shell_completes_fields_and_runs(tmp_path: Path) -> None:
    """As bash asks: Typer answers a line with the words that fit."""
    prepare_run(load_config("demo", ["name=mine", f"runs_dir={tmp_path}"]))
    program = "import sys; sys.argv = ['vmp']; from pipeline.cli import app; app(prog_name='vmp')"

    def completed(line: str) -> list[str]:
        asked = {
            "_VMP_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split()) - 1),
        }
        return subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **asked},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()

    assert completed("vmp train demo schedule.warmup_e") == ["schedule.warmup_epochs="]
    assert completed(f"vmp jobs logs --runs {tmp_path} mi") == ["mine"]
