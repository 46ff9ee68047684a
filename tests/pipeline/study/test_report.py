"""A report says what the units say, whatever that is, and the committed page holds to it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.errors import ConfigError
from pipeline.study.design import Arm
from pipeline.study.report import RESULTS_NAME, filled, load_results, write_report
from pipeline.study.store import Store
from pipeline.study.summary import Results, Summary, left_plateau
from pipeline.study.tables import tables
from pipeline.study.train import Result
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "science.md"
RESULTS = ROOT / "benchmarks" / "results" / RESULTS_NAME


def _with_accuracies(results: list[Result], top1: dict[tuple[str, int], float]) -> list[Result]:
    """Reported runs whose test accuracy is that of (name of the arm, seed)."""
    return [
        result.model_copy(update={"test_top1": top1[result.unit.arm.name, result.unit.seed]})
        for result in results
        if result.unit.role == "seed" and not result.unit.arm.options
    ]


def _is_seed_of(result: Result, arm: Arm) -> bool:
    return (result.unit.role, result.unit.arm) == ("seed", arm)


def test_effects_by_hand(finished: Store) -> None:
    """Seed 0: mask +10 with either start, start +20; seed 1: mask +14, start +20."""
    top1 = {}
    for arm in finished.design.arms:
        for seed, mask in ((0, 0.10), (1, 0.14)):
            start = 0.2 if arm.start == "first_token" else 0.0
            top1[arm.name, seed] = 0.3 + start + (mask if arm.mask else 0.0)
    summary = Summary(finished.design, _with_accuracies(finished.results(), top1))
    found = {(e.layout, e.change): e.estimate for e in summary.effects()}
    for layout in ("shared", "separate"):
        # Means of two seeds; the half width is 12.706 * |a - b| / 2.
        assert found[layout, "masked backward"] == pytest.approx((0.12, 12.706 * 0.02, 2))
        assert found[layout, "first-token start"] == pytest.approx((0.2, 0.0, 2), abs=1e-9)
        assert found["-", "separate layout"] == pytest.approx((0.0, 0.0, 2), abs=1e-9)
        assert found[layout, "both"] == pytest.approx((0.32, 12.706 * 0.02, 2))


def test_an_incomplete_seed_counts_for_no_effect(finished: Store) -> None:
    results = [
        result
        for result in finished.results()
        if (result.unit.arm.name, result.unit.seed) != ("shared-zero-plain", 1)
    ]
    found = {(e.layout, e.change): e.estimate for e in Summary(finished.design, results).effects()}
    assert found["shared", "masked backward"].runs == 1  # type: ignore[union-attr]
    assert found["separate", "masked backward"].runs == 2  # type: ignore[union-attr]


def test_the_plateau_ends_where_the_loss_falls_below_chance(finished: Store) -> None:
    result = next(result for result in finished.results() if result.unit.role == "seed")
    curve = [2.08, 2.07, 1.97, 1.5]  # ln 8 is 2.079
    ended = result.model_copy(update={"losses": curve, "steps": 400})
    assert left_plateau(ended) == 300
    assert left_plateau(result.model_copy(update={"losses": curve[:2]})) is None


def test_a_directory_and_its_json_give_the_same_report(finished: Store, tmp_path: Path) -> None:
    from_folder = write_report(finished.folder, tmp_path / "a", None)
    again = write_report(tmp_path / "a" / RESULTS_NAME, tmp_path / "b", None)
    assert [path.name for path in from_folder] == [path.name for path in again]
    for ours, theirs in zip(from_folder, again, strict=True):
        assert ours.read_bytes() == theirs.read_bytes()
    assert [path.suffix for path in from_folder] == [".json", ".svg", ".svg"]


def test_tables_show_every_arm_with_its_interval(finished: Store) -> None:
    results = load_results(finished.folder)
    found = tables(Summary(results.design, results.results))
    for arm in finished.design.arms:
        (line,) = (row for row in found["combinations"].splitlines() if f" {arm.name} " in row)
        accuracy = Summary(results.design, results.results).accuracy("motion", arm)
        assert accuracy is not None
        runs = [run.test_top1 or 0.0 for run in finished.results() if _is_seed_of(run, arm)]
        each = ", ".join(f"{100 * top1:.1f}" for top1 in runs)
        assert f"| {accuracy.percent()} | {each} |" in line
        assert len(runs) == 2
    assert found["candidates"].splitlines()[2].startswith("| motion | shared-zero-plain |")
    assert "+class_token=last" in found["candidates"]
    assert found["nuisances"].count("shared-first-mask") == 2
    assert found["status"].startswith("40 of 40 units have finished")


def test_sections_of_the_page_are_replaced_and_nothing_else() -> None:
    text = "a\n<!-- study: x -->\nold\n\\1\n<!-- end -->\nb\n<!-- study: y -->\n<!-- end -->\n"
    found = filled(text, {"x": r"new \1"}, Path("page.md"))
    assert found == text.replace("old\n\\1", r"new \1")
    with pytest.raises(ConfigError, match=r"page.md: has no section <!-- study: z -->"):
        filled(text, {"z": ""}, Path("page.md"))


def test_bad_sources_are_named(finished: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_results(tmp_path / "absent.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not the JSON file of a study's report"):
        load_results(tmp_path / "other.json")
    empty = Store.make(tmp_path / "empty", finished.design)
    with pytest.raises(ConfigError, match="no unit has finished yet"):
        write_report(empty.folder, tmp_path / "out", None)
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    with pytest.raises(ConfigError, match="has no section"):
        write_report(finished.folder, tmp_path / "out", page)
    assert not (tmp_path / "out").exists()
    assert page.read_text() == "nothing\n"


def test_the_command_answers_bad_input_with_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vmp", "study", "report", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}: holds no study")
    assert said.count("\n") == 1


def test_the_committed_page_says_what_the_committed_results_say(tmp_path: Path) -> None:
    results = Results.model_validate_json(RESULTS.read_text())
    text = PAGE.read_text()
    assert filled(text, tables(Summary(results.design, results.results)), PAGE) == text
    written = write_report(RESULTS, tmp_path, None)
    assert written[0].read_text() == RESULTS.read_text()
