"""Errors known before the run directory exists are reported before it exists."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline import cli, rundir
from pipeline.config import load_config, read_config
from pipeline.data.errors import DataError
from pipeline.errors import ConfigError
from pipeline.prepare import check_start, prepare_run
from pipeline.rundir.paths import TRACKING_ID_FILE, TRACKING_PENDING_FILE


@pytest.mark.parametrize(
    ("command", "override", "message"),
    [
        ("train", "batch.global_size=9", "batch.global_size=9 cannot be dealt to 2 ranks"),
        ("submit", "batch.global_size=9", "batch.global_size=9 cannot be dealt to 2 ranks"),
        ("train", "batch.global_size=102", "has 100 samples: set it to 100 or less"),
        ("train", "model.num_classes=5", "set model.num_classes=8"),
        ("train", "data.reader=ffcv", "data.reader=ffcv needs data.ffcv_cache"),
        ("submit", "data.val_split=none", "no split 'none'"),
    ],
)
def test_what_ranks_would_refuse_takes_no_name(
    command: str,
    override: str,
    message: str,
    tmp_path: Path,
    glyph_shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [f"runs_dir={tmp_path / 'runs'}", f"data.train={glyph_shards}", override]
    monkeypatch.setattr(sys, "argv", ["vmp", command, "demo", *given])

    with pytest.raises(SystemExit) as end:
        cli.main()

    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "runs").exists()


def test_the_world_of_a_launcher_is_the_one_that_counts(
    glyph_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.training.ranks import num_ranks

    config = load_config("demo", [f"data.train={glyph_shards}"])
    assert num_ranks(config.launch) == 2
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "5")
    assert num_ranks(config.launch) == 5
    with pytest.raises(ConfigError, match="cannot be dealt to 5 ranks"):
        check_start(config, num_ranks(config.launch))


def test_shards_that_a_job_before_makes_are_not_asked_for() -> None:
    config = load_config("demo", ["data.train=nowhere"])
    check_start(config, 2, data_exists=False)
    with pytest.raises(DataError, match=r"nowhere: no manifest\.json"):
        check_start(config, 2)


@pytest.mark.parametrize("stored", ["whole", "damaged"])
def test_a_run_without_a_committed_step_makes_way(tmp_path: Path, stored: str) -> None:
    run_dir = prepare_run(load_config("demo", [f"runs_dir={tmp_path}"]))
    before = (run_dir / rundir.PROVENANCE_FILE).stat().st_ino
    (run_dir / TRACKING_ID_FILE).write_text("of the run before\n")
    (run_dir / TRACKING_PENDING_FILE).touch()
    if stored == "damaged":
        (run_dir / rundir.CONFIG_FILE).write_text("")

    prepare_run(load_config("demo", [f"runs_dir={tmp_path}", "optim.lr=0.5"]))

    assert read_config(run_dir).optim.lr == 0.5
    assert not (run_dir / TRACKING_ID_FILE).exists()
    assert not (run_dir / TRACKING_PENDING_FILE).exists()
    assert (run_dir / rundir.PROVENANCE_FILE).stat().st_ino != before


def test_the_same_run_keeps_what_it_has(tmp_path: Path) -> None:
    run_dir = prepare_run(load_config("demo", [f"runs_dir={tmp_path}"]))
    (run_dir / TRACKING_ID_FILE).write_text("its own\n")
    prepare_run(load_config("demo", [f"runs_dir={tmp_path}", "log_every_steps=3"]))
    assert (run_dir / TRACKING_ID_FILE).read_text() == "its own\n"


def test_a_live_run_without_a_committed_step_keeps_its_name(tmp_path: Path) -> None:
    run_dir = prepare_run(load_config("demo", [f"runs_dir={tmp_path}"]))
    with (
        rundir.exclusive(run_dir),
        pytest.raises(ConfigError, match=r"optim\.lr: 0\.003 -> 0\.5"),
    ):
        prepare_run(load_config("demo", [f"runs_dir={tmp_path}", "optim.lr=0.5"]))
    assert read_config(run_dir).optim.lr == 0.003
