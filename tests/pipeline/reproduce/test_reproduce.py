"""Data, cost and results of a row, with values computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.flops import training_flops
from pipeline import rundir
from pipeline.config import RunConfig, load_config
from pipeline.errors import ConfigError
from pipeline.inference.statistics import wilson_of_share
from pipeline.reproduce import cost, report, results
from pipeline.reproduce.chain import chain_of
from pipeline.reproduce.cost import Speed
from pipeline.reproduce.report import ShardCounts, View
from pipeline.reproduce.results import Estimate, Result
from pipeline.reproduce.rows import DatasetFacts, load_tables
from pipeline.reproduce.shards import compare
from pipeline.rundir import State
from pipeline.rundir.heartbeats import Heartbeat, Phase
from pipeline.rundir.summary import Summary, write_summary

FACTS = DatasetFacts(title="K", classes=400, splits={"train": 1000, "val": 50}, counted="lists")


def test_missing_and_extra_videos_are_counted_per_split() -> None:
    lines = compare(FACTS, {"train": 1002, "val": 47, "test": 5}, 399, 3)
    assert lines == [
        "train: 1,002 of 1,000 videos, 2 extra",
        "val: 47 of 50 videos, 3 missing",
        "test: 5 videos, and the published lists have no such split",
        "classes: 399, where the data set has 400",
        "left out by sharding: 3 inputs, see quarantine.jsonl",
    ]
    assert compare(FACTS, {"train": 1000}, 400, 0) == [
        "train: 1,000 of 1,000 videos, complete",
        "val: 0 of 50 videos, 50 missing",
    ]


def test_the_published_throughput_gives_the_published_days() -> None:
    """50 epochs of two views of 240,436 videos at 8.7 clips/s on each of 16 GPUs: two days."""
    config = load_config("k400_videomamba_m16_f8")
    hours = Speed(8.7, config.model, "A100").gpu_hours(config, 240_436)
    assert hours == pytest.approx(50 * 2 * 240_436 / 8.7 / 3600, rel=2e-3)
    assert hours / 16 == pytest.approx(48, rel=0.01)


def test_another_model_costs_in_proportion_to_its_flops() -> None:
    eight, thirty_two = load_config("k400_m16_f8"), load_config("k400_m16_f32")
    speed = Speed(1.0, eight.model, "here")
    ratio = speed.gpu_hours(thirty_two, 128_000) / speed.gpu_hours(eight, 128_000)
    assert ratio == pytest.approx(training_flops(thirty_two.model) / training_flops(eight.model))
    with pytest.raises(ConfigError, match=r"batch\.global_size=512 is more than the 100 clips"):
        speed.gpu_hours(eight, 100)


def finished_run(root: Path, recipe: str, name: str, top1: float, *overrides: str) -> RunConfig:
    config = load_config(recipe, [f"runs_dir={root}", f"name={name}", *overrides])
    (config.run_dir / "logs").mkdir(parents=True)
    (config.run_dir / "config.yaml").write_text(config.to_yaml())
    checkpoint = config.run_dir / "checkpoints" / "step-00000001"
    write_summary(
        config.run_dir, Summary(top1=top1, num_samples=1000, steps=1, checkpoint=checkpoint)
    )
    rundir.write_status(config.run_dir, State.FINISHED)
    return config


def test_a_run_counts_by_its_settings_and_not_by_its_name(tmp_path: Path) -> None:
    recipe = "k400_m16_f32"
    finished_run(tmp_path, recipe, "mine", 0.8, "seed=7", "init_from=w.pth", "batch.max_micro=2")
    finished_run(tmp_path, recipe, recipe, 0.7, "optim.lr=1e-3", "schedule.epochs=9")
    finished_run(tmp_path, recipe, "other", 0.6, "optim.lr=1e-3")
    unfinished = finished_run(tmp_path, recipe, "unfinished", 0.9)
    rundir.write_status(unfinished.run_dir, State.RUNNING)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.yaml").write_text("- no run")

    wanted = load_config(recipe, [f"runs_dir={tmp_path}"])
    found = results.results_of(tmp_path, recipe, wanted)
    assert {r.run_dir.name: r.differs for r in found} == {
        "mine": (),
        recipe: ("optim.lr", "schedule.epochs"),
    }
    assert results.results_of(tmp_path / "none", recipe, wanted) == []


def test_an_interval_of_wilson() -> None:
    """80 of 100: (0.7112, 0.8666), from the formula by hand."""
    low, high = wilson_of_share(0.8, 100)
    assert (low, high) == (pytest.approx(0.71117, abs=1e-5), pytest.approx(0.86663, abs=1e-5))
    assert wilson_of_share(0.0, 0) == (0.0, 1.0)


def test_seeds_share_their_videos_and_folds_do_not() -> None:
    runs = [Result(Path("a"), 0.7, 100, ()), Result(Path("b"), 0.9, 100, ())]
    seeds = results.over_seeds(runs)
    assert seeds == Estimate(
        pytest.approx(0.8), *map(pytest.approx, wilson_of_share(0.8, 100)), 100
    )
    folds = [Estimate(0.8, 0, 1, 100), Estimate(0.6, 0, 1, 400)]
    mean = results.over_folds(folds)
    # sqrt(.8 * .2 / 100 + .6 * .4 / 400) / 2 = 0.0234521
    assert mean.top1 == pytest.approx(0.7)
    assert mean.high - mean.top1 == pytest.approx(1.959964 * 0.0234521, rel=1e-5)
    assert mean.num_samples == 500
    assert results.over_folds(folds[:1]) == folds[0]


def view_of(root: Path, **counts: ShardCounts) -> View:
    model = load_config("k400_videomamba_m16_f8").model
    return View(root, Speed(8.7, model, "A100"), counts)


def test_ours_stands_beside_theirs_with_an_interval(tmp_path: Path) -> None:
    tables = load_tables()
    name, recipe = "k400/videomamba-m/f32", "k400_videomamba_m16_f32"
    row, stages = tables.row(name), chain_of([recipe], [f"runs_dir={tmp_path}"])
    (nothing,) = report.outcome(row, stages, view_of(tmp_path), tables)
    assert nothing == f"{recipe}: no finished run with its settings in {tmp_path}"

    finished_run(tmp_path, recipe, "a", 0.81)
    finished_run(tmp_path, recipe, "b", 0.83, "seed=1")
    lines = list(report.outcome(row, stages, view_of(tmp_path), tables))
    assert lines[0].startswith(f"{tmp_path / 'a'}: 81.00% of 1,000 videos (78.4")
    assert lines[2].startswith("ours: 82.00% (79.50% to 84.26%, 95 % interval)")
    assert lines[3].startswith("theirs, zoo: 82.4% (79.9")
    assert lines[3].endswith("ours is -0.40 points from it, and the intervals overlap")


def test_a_far_claim_is_said_to_be_apart(tmp_path: Path) -> None:
    tables = load_tables()
    row = tables.row("k400/videomambapro-m/f32")
    finished_run(tmp_path, row.recipes[0], "a", 0.84)
    stages = chain_of(row.recipes, [f"runs_dir={tmp_path}"])
    lines = list(report.outcome(row, stages, view_of(tmp_path), tables))
    by_source = {line.split()[1].rstrip(":"): line for line in lines if line.startswith("theirs")}
    assert "84.0% to 85.2%" in by_source["pro-v4"]
    assert by_source["pro-v4"].endswith("+0.00 points from it, and the intervals overlap")
    assert by_source["pro-v3"].endswith("-7.90 points from it, and the intervals are apart")


def test_folds_need_all_their_runs(tmp_path: Path) -> None:
    tables = load_tables()
    row = tables.row("ucf101/videomambapro-m/f16")
    stages = chain_of(row.recipes, [f"runs_dir={tmp_path}"])
    for recipe, top1 in zip(row.recipes, (0.9, 0.8, 0.7), strict=True):
        lines = list(report.outcome(row, stages, view_of(tmp_path), tables))
        assert not any(line.startswith("mean") for line in lines)
        finished_run(tmp_path, recipe, recipe, top1)
    lines = list(report.outcome(row, stages, view_of(tmp_path), tables))
    assert lines[-1].startswith("mean of 3 folds: 80.00% (")


def test_the_cost_says_what_is_measured(tmp_path: Path) -> None:
    """1,000 clips in steps of 512: 50 steps of 3 s on two ranks."""
    config = finished_run(tmp_path, "k400_videomamba_m16_f8", "k400_videomamba_m16_f8", 0.5)
    for rank in range(2):
        beat = Heartbeat(
            rank=rank, host="h", pid=1, phase=Phase.TRAIN, step=3, total_steps=9, step_s=3, time=0
        )
        beat.write(config.run_dir)
    rows = [{"step": i, "kind": "train", "time": 0.0, "step_s": s} for i, s in enumerate((9, 3, 2))]
    (config.run_dir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert cost.measured_gpu_hours(config.run_dir, config, 1000) == pytest.approx(300 / 3600)

    stages = chain_of(["k400_videomamba_m16_f8"], [f"runs_dir={tmp_path}"])
    held = ShardCounts("s", {"train": 1000, "val": 9}, 400, 0)
    lines = list(report.costs(stages, view_of(tmp_path, k400=held), load_tables()))
    assert lines[0].startswith("in1k_videomamba_s16_224: ")
    assert lines[0].endswith("(stated)")
    assert lines[1].endswith("(stated, without the teacher)")
    assert lines[2].startswith("k400_videomamba_m16_f8: 0.0 node-hours (measured, step times of ")


def test_released_weights_stand_for_a_stage(tmp_path: Path) -> None:
    weights = {"in1k_m16_224": tmp_path / "w.pth"}
    (only,) = chain_of(["k400_m16_f32"], [], weights)
    assert only.config.init_from == tmp_path / "w.pth"
    assert "in place of the run of in1k_m16_224" in " ".join(report.chain([only]))
    with pytest.raises(ConfigError, match="in1k_m16_225: no stage of this row starts from it: did"):
        chain_of(["k400_m16_f32"], [], {"in1k_m16_225": tmp_path})
