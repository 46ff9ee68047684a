"""A run whose numbers are no longer finite says so and leaves readable files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pipeline import rundir
from pipeline.checkpoint.load import newest_valid, read_full_state
from pipeline.rundir import State
from tests import runs

pytestmark = pytest.mark.dist


def test_a_run_that_diverged_ends_with_a_word_and_a_readable_checkpoint(
    tmp_path: Path, glyph_shards: Path
) -> None:
    arguments = runs.overrides(
        tmp_path,
        glyph_shards,
        "diverged",
        schedule__max_steps=4,
        schedule__warmup_epochs=0,
        optim__lr=1e30,
        guard__max_skipped_in_a_row=9,
        launch__ranks_per_node=1,
    )
    run_dir = tmp_path / "diverged"

    output = runs.run("train", *arguments)

    assert "finished, but the validation loss is nan" in output
    status = rundir.read_status(run_dir)
    assert status.state is State.FINISHED
    assert "validation loss is nan" in status.reason
    newest = newest_valid(run_dir / rundir.CHECKPOINTS)
    assert newest is not None
    state, _ = read_full_state(newest)
    assert math.isnan(state.metrics["loss"])
    assert "with a validation loss of nan" in runs.run("train", *arguments)
