"""fp16: the loss scale, its skipped steps and the weights go on bit for bit after a resume."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import rundir
from pipeline.checkpoint import layout
from pipeline.rundir.metrics import read_metrics
from pipeline.training.distributed import World
from pipeline.training.trainer import Trainer
from tests import runs
from tests.dist import training
from tests.ranks import run_on_ranks

pytestmark = [pytest.mark.dist, pytest.mark.slow]

STEPS, FIRST_SCALE = 12, 2.0**24
SETTINGS: dict[str, object] = {
    "engine__precision": "fp16",
    "schedule__max_steps": STEPS,
    "eval__every_epochs": 100,
}


def begin(trainer: Trainer, stop_at: int | None = None) -> None:
    """Begin with a scale that is too high, and ask the run to stop in the step `stop_at`."""
    trainer.engine.loss_scale.value = FIRST_SCALE
    note = trainer.engine.loss_scale.note

    def note_and_ask(finite: bool) -> None:
        note(finite)
        if trainer.progress.step == stop_at:
            trainer.stopper._note(15, None)

    trainer.engine.loss_scale.note = note_and_ask  # type: ignore[method-assign]


def both(world: World, root: Path, shards: Path) -> None:
    whole = training.prepare(world, root, shards, "whole", **SETTINGS)
    training.train(world, whole, change=begin)
    halves = training.prepare(world, root, shards, "halves", **SETTINGS)
    training.train(world, halves, change=lambda trainer: begin(trainer, stop_at=2))
    training.train(world, halves)


def test_the_loss_scale_goes_on_where_it_stopped(tmp_path: Path, glyph_shards: Path) -> None:
    run_on_ranks(both, 1, tmp_path, glyph_shards)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    runs.assert_bitwise_equal(runs.final_state(whole), runs.final_state(halves))
    scales = {}
    for run_dir in (whole, halves):
        rows = [row for row in read_metrics(run_dir) if row["kind"] == "train"]
        names = ("step", "loss_scale", "loss_scale_skipped_steps", "skipped_steps")
        scales[run_dir] = [tuple(row[name] for name in names) for row in rows]
    assert scales[whole] == scales[halves]
    skipped = 0.0
    for step, (number, scale, overflows, all_skipped) in enumerate(scales[whole], 1):
        assert number == step
        assert overflows == all_skipped
        assert overflows - skipped in (0, 1)
        assert scale == FIRST_SCALE / 2**overflows
        skipped = overflows
    # The first checkpoint lies between the skipped steps.
    assert 4 < skipped < STEPS
    state = layout.read_state(rundir.committed(halves / rundir.CHECKPOINTS)[-1])
    assert state.loss_scale is not None
    assert (state.loss_scale.value, state.loss_scale.overflows) == scales[whole][-1][1:3]
    assert state.adam_steps == STEPS - skipped
