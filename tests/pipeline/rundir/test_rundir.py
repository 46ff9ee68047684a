"""A run directory has one owner, and damage in it is reported in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import prepare, rundir
from pipeline.commands import runs
from pipeline.config import load_config, read_config
from pipeline.errors import ConfigError
from pipeline.health.failure import record_failure
from pipeline.prepare import prepare_run
from pipeline.rundir import RunInUseError
from pipeline.training.train import run


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return prepare_run(load_config("demo", ["name=run", f"runs_dir={tmp_path}"]))


def test_a_second_start_leaves_a_live_run_untouched(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare, "check_start", lambda *_: None)
    with rundir.exclusive(run_dir):
        rundir.write_status(run_dir, rundir.State.RUNNING)
        record_failure(run_dir, 1, RuntimeError("of the live run"))
        before = _content(run_dir)

        assert run(run_dir) == 2
        with pytest.raises(RunInUseError, match="in use by another training process"):
            runs.train("demo", ["name=run", f"runs_dir={run_dir.parent}", "log_every_steps=7"])

        assert _content(run_dir) == before
    assert "in use by another training process" in capsys.readouterr().err


def _content(run_dir: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("text", "message"), [("", "empty"), ("- a\n", "not a mapping"), ("a: [\n", "not YAML")]
)
def test_a_broken_configuration_is_one_line(run_dir: Path, text: str, message: str) -> None:
    path = run_dir / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_config(run_dir)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", '{"state": "fin', "[]"])
def test_a_status_cut_short_is_unreadable(run_dir: Path, text: str) -> None:
    (run_dir / "status.json").write_text(text)
    assert rundir.read_status(run_dir).state is rundir.State.UNREADABLE
