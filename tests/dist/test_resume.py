"""Killed, stopped, or resumed elsewhere: the run ends where the undisturbed one ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data_prep.schema import MANIFEST_NAME, Manifest
from model import create_model, save_model
from pipeline import rundir
from pipeline.audit.audit import audit
from pipeline.audit.result import Verdict
from pipeline.checkpoint import layout
from pipeline.inference.evaluate_checkpoint import evaluate_checkpoint
from pipeline.inference.export import export_weights
from pipeline.rundir.metrics import read_metrics
from pipeline.rundir.samples import read_samples
from tests import runs
from tests.dist.conftest import STEPS

pytestmark = pytest.mark.dist


def unfinished_copy(undisturbed: Path, root: Path) -> Path:
    """A copy of the undisturbed run and its checkpoints, as if it had not ended."""
    run_dir = root / undisturbed.name
    shutil.copytree(undisturbed, run_dir)
    for file in ("summary.json", "mlflow_run_id"):
        (run_dir / file).unlink()
    return run_dir


def test_an_undisturbed_run_shows_each_sample_once_per_epoch(undisturbed: Path) -> None:
    samples = read_samples(undisturbed)
    assert list(samples) == list(range(STEPS))
    for epoch in range(STEPS // 8):  # 100 samples are 8 global batches of 12
        keys = [key for step in range(epoch * 8, epoch * 8 + 8) for key in samples[step]]
        assert len(keys) == len(set(keys)) == 96


def test_sigkill_in_mid_run_then_the_same_command_gives_the_same_bits(
    root: Path, glyph_shards: Path, undisturbed: Path
) -> None:
    arguments = runs.overrides(
        root, glyph_shards, "killed", schedule__max_steps=STEPS, checkpoint__every_steps=5
    )
    process = runs.start("train", *arguments)
    saved = runs.wait_for_checkpoint(root / "killed", process)
    runs.kill_group(process)
    assert saved < STEPS, "the run was over before it could be killed"

    output = runs.run("train", *arguments)

    assert "resuming from" in output
    runs.assert_bitwise_equal(runs.final_state(undisturbed), runs.final_state(root / "killed"))
    assert read_samples(root / "killed") == read_samples(undisturbed)
    audited = audit(root / "killed")
    assert audited.verdict is Verdict.PROVEN, audited.reason
    assert audited.stretches[1].first_step >= saved
    runs.assert_one_mlflow_run(root / "killed", STEPS)
    assert best_step(root / "killed") == best_step(undisturbed)


def best_step(run_dir: Path) -> int:
    return layout.read_state(layout.committed(run_dir / "checkpoints")[-1]).best_step


def test_the_weights_of_the_best_evaluation_are_kept(undisturbed: Path) -> None:
    """checkpoint.every_steps saves elsewhere: the evaluation alone asked for it."""
    top1 = {row["step"]: row["top1"] for row in read_metrics(undisturbed) if row["kind"] == "eval"}
    best = max(top1, key=lambda step: top1[step])  # the first of equals
    assert best % 10
    assert best_step(undisturbed) == best
    kept = layout.read_state(undisturbed / "checkpoints" / layout.checkpoint_name(best))
    assert (kept.evaluated_step, kept.metrics["top1"]) == (best, top1[best])


def test_sigterm_saves_and_exits_75_and_the_run_can_go_on(
    root: Path, glyph_shards: Path, undisturbed: Path
) -> None:
    arguments = runs.overrides(
        root, glyph_shards, "stopped", schedule__max_steps=STEPS, checkpoint__keep_best="false"
    )
    process = runs.start("train", *arguments)
    while not (root / "stopped" / "metrics.jsonl").exists() or not read_metrics(root / "stopped"):
        assert process.poll() is None, process.communicate()[0]
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert json.loads((root / "stopped" / "status.json").read_text())["state"] == "stopped"
    assert len(layout.committed(root / "stopped" / "checkpoints")) == 1

    runs.run("train", *arguments)

    runs.assert_bitwise_equal(runs.final_state(undisturbed), runs.final_state(root / "stopped"))
    assert read_samples(root / "stopped") == read_samples(undisturbed)


def test_ranks_whose_launcher_is_killed_alone_save_and_end(
    tmp_path: Path, glyph_shards: Path
) -> None:
    run_dir = tmp_path / "orphaned"
    arguments = runs.overrides(
        tmp_path,
        glyph_shards,
        run_dir.name,
        schedule__epochs=10_000,
        launch__ranks_per_node=2,
        checkpoint__every_steps=5,
    )
    process = runs.start("train", *arguments)
    saved = runs.wait_for_checkpoint(run_dir, process)

    process.kill()

    deadline = time.monotonic() + 60
    while rundir.is_active(run_dir):
        assert time.monotonic() < deadline, "the ranks train on"
        time.sleep(0.1)
    runs.kill_group(process)
    assert rundir.read_status(run_dir).state is rundir.State.STOPPED
    assert rundir.newest_step(run_dir) > saved


def test_a_stop_interrupts_an_evaluation_which_is_made_up_for(
    tmp_path: Path, glyph_shards: Path
) -> None:
    shards = shutil.copytree(glyph_shards, tmp_path / "shards")
    weights = tmp_path / "weights.safetensors"
    save_model(weights, create_model("videomambapro-tiny-test", num_classes=8))
    arguments = runs.overrides(
        tmp_path,
        shards,
        "evaluating",
        init_from=weights,
        schedule__max_steps=8,
        eval__batch_size=1,
        eval__clips=500,  # a second, which begins when step 8 is logged
    )
    run_dir = tmp_path / "evaluating"
    process = runs.start("train", *arguments)
    while not ((run_dir / "metrics.jsonl").exists() and len(read_metrics(run_dir)) == 8):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert not [row for row in read_metrics(run_dir) if row["kind"] == "eval"]
    before = runs.final_state(run_dir)
    # A resumed run needs neither the weights it began with nor the same set of splits.
    weights.unlink()
    manifest = Manifest.model_validate_json((shards / MANIFEST_NAME).read_bytes())
    more = manifest.model_copy(update={"splits": {**manifest.splits, "test": 5}}).sealed()
    (shards / MANIFEST_NAME).write_text(more.model_dump_json())

    runs.run("train", *arguments)

    (evaluation,) = [row for row in read_metrics(run_dir) if row["kind"] == "eval"]
    assert (evaluation["step"], evaluation["num_samples"]) == (8, 24)
    runs.assert_bitwise_equal(before, runs.final_state(run_dir))


@pytest.mark.parametrize(("ranks", "stage"), [(1, 3), (3, 2)])
def test_another_world_size_and_zero_stage_see_the_same_batches(
    tmp_path: Path, glyph_shards: Path, undisturbed: Path, ranks: int, stage: int
) -> None:
    run_dir = unfinished_copy(undisturbed, tmp_path)
    for checkpoint in layout.committed(run_dir / "checkpoints"):
        if layout.step_of(checkpoint) > 20:
            shutil.rmtree(checkpoint)
    half = runs.overrides(tmp_path, glyph_shards, run_dir.name, schedule__max_steps=STEPS)

    output = runs.run(
        "train", *half, f"launch.ranks_per_node={ranks}", f"engine.zero_stage={stage}"
    )

    assert f"resuming from {run_dir}/checkpoints/step-00000020" in output
    assert read_samples(run_dir) == read_samples(undisturbed)
    audited = audit(run_dir)
    assert audited.verdict is Verdict.PROVEN, audited.reason
    assert [(s.steps, s.world_size, s.discarded) for s in audited.stretches] == [
        (range(20), 2, {}),
        (range(20, STEPS), ranks, dict.fromkeys(range(20, STEPS), 12)),
    ]
    difference = runs.largest_relative_difference(
        runs.final_state(undisturbed), runs.final_state(run_dir)
    )
    assert difference < 1e-5


def test_a_corrupt_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, glyph_shards: Path, undisturbed: Path
) -> None:
    run_dir = unfinished_copy(undisturbed, tmp_path)
    *_, before, newest = layout.committed(run_dir / "checkpoints")
    shard = next(layout.shard_files(newest))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)

    output = runs.run(
        "train", *runs.overrides(tmp_path, glyph_shards, run_dir.name, schedule__max_steps=STEPS)
    )

    assert "does not match its committed sha256; falling back" in output
    assert f"resuming from {before}" in output
    runs.assert_bitwise_equal(runs.final_state(undisturbed), runs.final_state(run_dir))


def test_summary_of_a_finished_run(undisturbed: Path) -> None:
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert set(summary) == {
        "top1", "top5", "num_samples", "steps", "epochs", "checkpoint", "mlflow_run_id", "wall_s",
    }  # fmt: skip
    assert summary["num_samples"] == 24
    assert summary["steps"] == STEPS
    assert summary["epochs"] == STEPS / 8
    assert Path(summary["checkpoint"]).is_dir()
    runs.assert_one_mlflow_run(undisturbed, STEPS)


def test_what_leaves_a_run_is_the_average_of_its_weights_unless_raw(
    undisturbed: Path, glyph_shards: Path, tmp_path: Path
) -> None:
    state = runs.final_state(undisturbed)
    for raw, key in ((False, "ema"), (True, "param")):
        exported = load_file(export_weights(undisturbed, tmp_path / f"{key}.safetensors", raw=raw))
        assert exported.keys() == state.keys()
        for name, tensors in state.items():
            assert torch.equal(exported[name], tensors[key]), name
        assert not torch.equal(state["head.weight"]["ema"], state["head.weight"]["param"])

    in_training = [row for row in read_metrics(undisturbed) if row["kind"] == "eval"][-1]
    averaged = evaluate_checkpoint(undisturbed, glyph_shards)
    raw_result = evaluate_checkpoint(undisturbed, glyph_shards, ["eval.use_ema=false"])
    assert averaged.loss == pytest.approx(in_training["loss"], rel=1e-5)
    assert raw_result.loss != pytest.approx(in_training["loss"], rel=1e-4)
