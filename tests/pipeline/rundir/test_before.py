"""A run that was made before the run directory had a schema: tests/before/README.md."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline import rundir
from pipeline.checkpoint import layout
from pipeline.checkpoint.load import newest_valid, read_full_state
from pipeline.checkpoint.trained import checkpoint_config
from pipeline.commands import watch
from pipeline.config import RunConfig, load
from pipeline.errors import CheckpointError
from pipeline.rundir import State, StopClass
from pipeline.training import assemble
from slurm.nodes import faults
from slurm.record import find_record
from tests import runs

BEFORE = Path(__file__).parents[2] / "before"
SAVED = 205


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BEFORE / "runs", tmp_path / "runs"))


def test_its_records_are_read(runs_dir: Path) -> None:
    run_dir = runs_dir / "before"
    status = rundir.read_status(run_dir)
    assert (status.state, status.exit_status) == (State.STOPPED, 75)
    assert status.stop_class is StopClass.CANCELLED
    assert status.attempt == "1.1"
    killed, stopped = rundir.read_attempts(run_dir)
    assert (killed.stop_class, killed.node, killed.step) == ("node_fault", "node2", 100)
    assert (stopped.stop_class, stopped.step) == ("cancelled", SAVED)
    assert [mark.status for mark in rundir.read_marks(run_dir, "1.1")] == [75, 75]
    assert [beat.step for beat in rundir.read_heartbeats(run_dir)] == [SAVED, SAVED]
    failure = rundir.first_failure(run_dir, "1.0")
    assert failure is not None
    assert failure.consequence
    record = find_record(run_dir)
    assert record is not None
    assert (record.cluster, record.job_id, record.resources.nodes) == ("slurm", "1", 2)
    assert [fault.node for fault in faults(runs_dir)] == ["node2"]


def test_it_is_listed(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch.queue, "views", lambda _: {})  # SLURM has forgotten the job
    (row,) = watch.list_jobs(runs_dir)
    assert (row.name, row.state, row.job) == ("before", "stopped", "slurm:1")
    assert (row.cells()["step"], row.checkpoint, row.restarts) == ("205/600", "step-00000205", 2)
    assert row.reason == "cancelled: signal SIGTERM"


@pytest.mark.dist
def test_it_is_resumed(runs_dir: Path) -> None:
    run_dir = runs_dir / "before"
    argv = json.loads((run_dir / rundir.PROVENANCE_FILE).read_text())["argv"]
    recipe = [word for word in argv[2 : argv.index("--cluster")] if not word.startswith("runs_dir")]
    here = [f"runs_dir={runs_dir}", f"data.train={BEFORE / 'shards'}", "stop.after_s=0.5"]
    output = runs.run("train", *recipe, *here, expect=75)
    assert f"resuming from {run_dir / 'checkpoints' / 'step-00000205'}" in output
    newest = newest_valid(run_dir / rundir.CHECKPOINTS)
    assert newest is not None
    state, _ = read_full_state(newest)
    assert state.step > SAVED
    assert rundir.read_status(run_dir).stop_class is StopClass.TIME_LIMIT


class _Tomorrow(RunConfig):
    precise: bool = False
    """A field that did not exist when the run was stored."""


def test_its_checkpoint_is_compared_field_by_field(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stored state holds a digest of the configuration, on which nothing depends any more."""
    checkpoint = runs_dir / "before/checkpoints/step-00000205"
    state, stored = layout.read_state(checkpoint), checkpoint_config(checkpoint)
    monkeypatch.setattr(load, "RunConfig", _Tomorrow)
    given = checkpoint_config(checkpoint).model_dump(mode="json")

    def check(**changes: object) -> None:
        assemble.check_same_run(
            state, _Tomorrow.model_validate(given | changes), checkpoint, state.data_digest
        )

    check()
    check(log_every_steps=3)
    with pytest.raises(CheckpointError) as error:
        check(precise=True, seed=stored.seed + 7)
    assert f"precise: False -> True; seed: {stored.seed} -> {stored.seed + 7}" in str(error.value)
    assert "give precise=false seed=" in str(error.value)
