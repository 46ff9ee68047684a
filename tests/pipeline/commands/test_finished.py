"""Which runs have nothing left to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline import rundir
from pipeline.checkpoint import layout
from pipeline.checkpoint.config import CheckpointConfig
from pipeline.checkpoint.layout import RunState
from pipeline.checkpoint.save import CheckpointSaver
from pipeline.commands.finished import finished
from pipeline.config import RunConfig, load_config
from pipeline.errors import ConfigError
from pipeline.open_data import data_digest, open_data
from pipeline.prepare import prepare_run
from pipeline.rundir.paths import TRACKING_PENDING_FILE as PENDING_FILE
from pipeline.training.distributed import World
from pipeline.training.zero_state import Fragment


def finish(config: RunConfig, data_digest: str) -> RunConfig:
    """Leaves a run directory as a finished run does."""
    run_dir = prepare_run(config)
    alone = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    saver = CheckpointSaver(run_dir / rundir.CHECKPOINTS, CheckpointConfig(), alone)
    state = RunState(
        step=30,
        position=960,
        adam_steps=30,
        world_size=1,
        zero_stage=1,
        shapes={"w": (2,)},
        classes=tuple("abcdefgh"),
        data_digest=data_digest,
    )
    saver.save(iter([Fragment("w", 0, {"param": torch.ones(2)})]), state, config.to_yaml())
    saver.finish()
    summary = {"top1": 0.75, "num_samples": 24, "steps": 30}
    checkpoint = f"/moved/away/{saver.path_of(30).name}"
    (run_dir / rundir.SUMMARY_FILE).write_text(json.dumps(summary | {"checkpoint": checkpoint}))
    rundir.write_status(run_dir, "finished")
    return config


@pytest.fixture
def ready(tmp_path: Path, glyph_shards: Path) -> RunConfig:
    return load_config("demo", [f"runs_dir={tmp_path}", f"data.train={glyph_shards}"])


@pytest.fixture
def config(ready: RunConfig) -> RunConfig:
    return finish(ready, data_digest(*open_data(ready)))


def test_a_finished_run_says_what_it_has_reached(config: RunConfig) -> None:
    summary = finished(config)
    assert summary is not None
    assert "top-1 75.0% of 24 validation videos after 30 steps" in summary.line(config.run_dir)


def test_another_configuration_is_refused(config: RunConfig) -> None:
    other = config.model_copy(update={"seed": 5})
    with pytest.raises(ConfigError, match="seed: 0 -> 5"):
        finished(other)


def stopped(config: RunConfig) -> None:
    rundir.write_status(config.run_dir, "stopped")


def undelivered(config: RunConfig) -> None:
    (config.run_dir / PENDING_FILE).touch()


def damaged(config: RunConfig) -> None:
    shard = next(layout.shard_files(config.run_dir / "checkpoints" / "step-00000030"))
    shard.write_bytes(b"")


def half_summary(config: RunConfig) -> None:
    (config.run_dir / rundir.SUMMARY_FILE).write_text('{"top1": 0.7')


@pytest.mark.parametrize("spoil", [stopped, undelivered, damaged, half_summary])
def test_what_an_attempt_would_mend_is_not_finished(config: RunConfig, spoil: object) -> None:
    assert callable(spoil)
    spoil(config)
    assert finished(config) is None


def test_other_data_are_left_to_the_ranks_to_refuse(ready: RunConfig) -> None:
    assert finished(finish(ready, "of other shards")) is None
