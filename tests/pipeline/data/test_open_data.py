"""Errors in the data are reported before any rank starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import rundir
from pipeline.checkpoint.layout import MARKER
from pipeline.config import RunConfig, load_config
from pipeline.errors import CheckpointError, ConfigError
from pipeline.open_data import open_data
from pipeline.prepare import check_start


def _config(root: Path, shards: Path, *overrides: str) -> RunConfig:
    own = [f"runs_dir={root}", f"data.train={shards}", "model.num_classes=3"]
    return load_config("demo", [*own, "batch.global_size=26", *overrides])


def test_a_batch_larger_than_the_split(tmp_path: Path, shard_dir: Path) -> None:
    train, _ = open_data(_config(tmp_path, shard_dir))
    assert len(train) == 26
    with pytest.raises(ConfigError, match=r"global_size=27, .* has 26 samples: set it to 26"):
        open_data(_config(tmp_path, shard_dir, "batch.global_size=27"))


def test_absent_weights_are_needed_only_to_start(tmp_path: Path, shard_dir: Path) -> None:
    config = _config(tmp_path, shard_dir, f"init_from={tmp_path / 'absent.safetensors'}")
    with pytest.raises(CheckpointError, match=r"absent\.safetensors: no such file or directory"):
        check_start(config, 1)
    checkpoint = config.run_dir / rundir.CHECKPOINTS / "step-00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / MARKER).write_text("{}")
    check_start(config, 1)
