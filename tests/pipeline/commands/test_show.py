"""`vmp jobs show` says how the attempts of a run ended and which batches it left out."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from pipeline import exits
from pipeline.cli import app
from pipeline.config import load_config
from pipeline.prepare import prepare_run
from pipeline.rundir import Attempt, LeftOutBatch, Rollback, append_attempt, append_rollback

RUN = CliRunner()


def test_attempts_and_rollbacks_of_a_run(tmp_path: Path) -> None:
    run_dir = prepare_run(load_config("demo", ["name=a", f"runs_dir={tmp_path}"]))
    append_attempt(run_dir, Attempt(job_id="7", stop_class="preempted", reason="signal SIGTERM"))
    batches = tuple(LeftOutBatch(step=step, keys=(f"key{step}",)) for step in (17, 18))
    append_rollback(
        run_dir, Rollback(step=18, to_step=10, reason="the loss of 9 at step 18", batches=batches)
    )
    shown = RUN.invoke(app, ["jobs", "show", "a", "--runs", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    first, *_, attempt, rollback = shown.output.splitlines()
    assert first.split() == ["name", "a"]
    assert attempt.endswith("preempted: signal SIGTERM")
    assert rollback.endswith(
        "back to step 10 at step 18: the loss of 9 at step 18; left out: the batches of "
        "steps 17, 18"
    )
    printed = RUN.invoke(app, ["jobs", "show", "a", "--runs", str(tmp_path), "--json"])
    found = json.loads(printed.output)
    assert found["run"]["name"] == "a"
    assert found["rollbacks"][0]["batches"][0] == {"step": 17, "keys": ["key17"]}


def test_no_such_run_is_one_line(tmp_path: Path) -> None:
    shown = RUN.invoke(app, ["jobs", "show", "b", "--runs", str(tmp_path)])
    assert isinstance(shown.exception, ValueError)
    assert exits.is_bad_input(shown.exception)
    assert "run " in str(shown.exception)
    assert "not found" in str(shown.exception)
