"""A study is finished once, by any number of processes, whatever kills them."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.jobs.claims import Claims
from pipeline.errors import ConfigError
from pipeline.study import campaign
from pipeline.study.campaign import run_study
from pipeline.study.design import Design
from pipeline.study.designs import SHORT
from pipeline.study.store import Store, best_settings, read_design
from pipeline.study.train import Result
from pipeline.training.determinism import configure
from tests.conftest import ROOT


def _files(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.folder.glob("units/*.json")}


def _same(a: Result, b: Result) -> bool:
    ours, theirs = (r.model_dump(exclude={"cpu_s", "host"}) for r in (a, b))
    return ours == theirs


def _begun(finished: Store, folder: Path, without: str) -> Store:
    """A copy of the finished study in which the units named `without` are missing."""
    shutil.copytree(finished.folder, folder)
    for path in folder.glob(f"units/*{without}*.json"):
        path.unlink()
    return Store(folder, finished.design)


def test_every_unit_has_one_file(finished: Store) -> None:
    assert set(_files(finished)) == {f"{unit.name}.json" for unit in finished.design.units()}
    assert not list(finished.claims.iterdir())


def test_the_same_command_repeats_nothing(finished: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def trap(*_: object) -> None:
        raise AssertionError("a finished unit was trained again")

    monkeypatch.setattr(campaign, "run_unit", trap)
    before = _files(finished)
    run_study(finished.folder, finished.design, lambda _: None)
    assert _files(finished) == before


def test_a_study_goes_on_where_it_stopped_with_equal_results(
    finished: Store, tmp_path: Path
) -> None:
    begun = _begun(finished, tmp_path / "begun", "seed-1")
    kept = _files(begun)
    told: list[str] = []
    again = run_study(begun.folder, finished.design, told.append)
    missing = set(_files(finished)) - set(kept)
    assert len(told) == len(missing) == 9
    assert {name: text for name, text in _files(again).items() if name in kept} == kept
    for ours, theirs in zip(again.results(), finished.results(), strict=True):
        assert _same(ours, theirs)


def test_a_unit_that_another_process_trains_is_left_to_it(finished: Store, tmp_path: Path) -> None:
    begun = _begun(finished, tmp_path / "begun", "seed-0")
    pending = [unit for unit in begun.design.units() if begun.result(unit) is None]
    with Claims(begun.claims) as other, Claims(begun.claims) as ours:
        assert other.take(pending[0].name) is not None
        result = campaign._train_next(pending, begun, ours, {})
    assert result is not None
    assert result.unit == pending[1]


def test_reported_units_wait_for_the_whole_grid(finished: Store, tmp_path: Path) -> None:
    begun = _begun(finished, tmp_path / "begun", "--")
    tuning = begun.design.tuning("motion", begun.design.arms[0])
    seed = next(unit for unit in begun.design.units() if unit.role == "seed")
    begun.keep(finished.result(tuning[0]))  # type: ignore[arg-type]
    assert begun.chosen("motion", seed.arm) is None
    with Claims(begun.claims) as claims:
        assert campaign._train_next([seed], begun, claims, {}) is None
    begun.keep(finished.result(tuning[1]))  # type: ignore[arg-type]
    assert begun.chosen("motion", seed.arm) in [unit.settings for unit in tuning]


def test_tuning_takes_the_best_validation_and_never_sees_test_clips(finished: Store) -> None:
    tuned = [result for result in finished.results() if result.unit.role == "tuning"]
    assert all(result.test_top1 is None and result.test_clips == 0 for result in tuned)
    a, b = tuned[0], tuned[len(finished.design.arms)]
    assert a.unit.arm == b.unit.arm
    assert a.settings != b.settings
    worse = a.model_copy(update={"val_top1": 0.5, "val_loss": 1.0})
    better = b.model_copy(update={"val_top1": 0.6, "val_loss": 2.0})
    assert best_settings([worse, better]) == b.settings
    tied = better.model_copy(update={"val_top1": 0.5})
    assert best_settings([tied, worse]) == a.settings
    for result in finished.results():
        if result.unit.role == "seed":
            assert result.settings == finished.chosen("motion", result.unit.arm)


def test_a_diverging_unit_is_recorded_and_ends_no_study(finished: Store, tmp_path: Path) -> None:
    configure(0, deterministic=False, threads=1)
    unit = next(unit for unit in finished.design.units() if unit.role == "seed")
    settings = finished.design.grid[0].model_copy(update={"lr": 1e30, "warmup": 0.0})
    result = campaign.run_unit(unit, settings, finished.design, tmp_path, {})
    assert result.diverged_at is not None
    assert result.diverged_at < result.steps
    assert result.test_top1 is not None
    lost = result.model_copy(update={"val_loss": math.nan, "losses": [], "val_top1": 0.5})
    begun = _begun(finished, tmp_path / "begun", "--")
    begun.keep(lost)
    read = Store(begun.folder, begun.design).result(unit)
    assert read is not None
    assert math.isnan(read.val_loss)
    better = lost.model_copy(update={"val_loss": 2.0, "settings": finished.design.grid[1]})
    assert best_settings([lost, better]) == finished.design.grid[1]


def test_another_design_is_refused(finished: Store) -> None:
    with pytest.raises(ConfigError, match="holds a study of another design"):
        run_study(finished.folder, SHORT, lambda _: None)


def test_a_damaged_unit_is_named(finished: Store, tmp_path: Path) -> None:
    begun = _begun(finished, tmp_path / "begun", "nothing")
    path = sorted(begun.folder.glob("units/*.json"))[0]
    path.write_text('{"unit":')
    with pytest.raises(ConfigError, match=rf"{path.name}: is damaged; delete it"):
        begun.results()


def test_a_folder_without_a_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no study"):
        read_design(tmp_path)
    (tmp_path / "design.json").write_text("{}")
    with pytest.raises(ConfigError, match="not the design of a study of this version"):
        read_design(tmp_path)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path, design: Design) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        run_study(tmp_path / "file" / "dir", design, lambda _: None)


@pytest.mark.slow
def test_a_killed_process_loses_no_finished_unit(tmp_path: Path) -> None:
    folder = tmp_path / "dir"
    command = [sys.executable, "-m", "pipeline.cli", "study", "ablation", str(folder)]
    process = subprocess.Popen([*command, "--size", "short"], cwd=ROOT, env={**os.environ})
    deadline = time.monotonic() + 120
    while len(list(folder.glob("units/*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.read_bytes() for path in folder.glob("units/*.json")}
    assert 3 <= len(before) < sum(1 for _ in SHORT.units())
    store = run_study(folder, SHORT, lambda _: None)
    assert {path: path.read_bytes() for path in before} == before
    assert len(store.results()) == sum(1 for _ in SHORT.units())
