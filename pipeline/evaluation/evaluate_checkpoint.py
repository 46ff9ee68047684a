"""Evaluate a checkpoint outside training, in one process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from model import VideoMamba, create_model
from pipeline.assemble import evaluation_loader
from pipeline.checkpoint import layout
from pipeline.checkpoint.load import newest_valid, read_weights
from pipeline.config import RunConfig, apply_overrides, build_config
from pipeline.data import open_shards
from pipeline.engine import resolve_precision
from pipeline.errors import CheckpointError, ConfigError
from pipeline.evaluation.evaluate import EvalResult, evaluate
from pipeline.record import rundir


def find_checkpoint(path: Path) -> Path:
    """The checkpoint itself, or the newest intact one of a run directory."""
    if (path / layout.MARKER).is_file():
        return path
    if (path / rundir.CHECKPOINTS).is_dir():
        newest = newest_valid(path / rundir.CHECKPOINTS)
        if newest is not None:
            return newest
    raise CheckpointError(f"{path}: neither a committed checkpoint nor a run that has one")


def checkpoint_config(checkpoint: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration a checkpoint was trained with, with overrides applied."""
    path = checkpoint / layout.CONFIG_FILE
    raw = yaml.safe_load(path.read_text())
    apply_overrides(raw, overrides)
    return build_config(raw, source=str(path))


def load_trained(checkpoint: Path, config: RunConfig) -> VideoMamba:
    """The model of a committed checkpoint, on the CPU; averaged weights as `eval.use_ema` says."""
    model = create_model(config.model)
    model.load_state_dict(read_weights(checkpoint, raw=not config.eval.use_ema))
    return model


def evaluate_checkpoint(path: Path, data: Path, overrides: Sequence[str] = ()) -> EvalResult:
    """Accuracy of a checkpoint on the validation split of `data`.

    Overrides reach any field: `data.val_split=test`, `eval.clips=4`, `eval.shuffle_frames=true`,
    `eval.use_ema=false`.
    Raises CheckpointError, ConfigError or DataError.
    """
    checkpoint = find_checkpoint(path)
    config = checkpoint_config(checkpoint, overrides)
    shards = open_shards(data, config.data.val_split)
    if len(shards.classes) != config.model.num_classes:
        raise ConfigError(
            f"{checkpoint} knows {config.model.num_classes} classes, {data} has "
            f"{len(shards.classes)}: it was trained on other data"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_trained(checkpoint, config).to(device).eval()
    autocast = torch.autocast(
        device.type,
        torch.bfloat16,
        enabled=resolve_precision(config.engine.precision, device) == "bf16",
    )
    with autocast:
        return evaluate(model, evaluation_loader(shards, config), config.data, device)
