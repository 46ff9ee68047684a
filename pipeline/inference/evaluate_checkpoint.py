"""Evaluate a checkpoint outside training, in one process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.checkpoint import layout
from pipeline.checkpoint.trained import checkpoint_config, find_checkpoint, load_trained
from pipeline.data.shards import Shards, open_shards
from pipeline.errors import ConfigError
from pipeline.inference.evaluate import EvalResult, evaluate
from pipeline.inference.loader import evaluation_loader
from pipeline.training.precision import AUTOCAST, resolve_precision


def evaluate_checkpoint(path: Path, data: Path, overrides: Sequence[str] = ()) -> EvalResult:
    """Accuracy of a checkpoint on the validation split of `data`.

    Overrides reach any field: `data.val_split=test`, `eval.clips=4`, `eval.shuffle_frames=true`,
    `eval.use_ema=false`.
    Raises CheckpointError, ConfigError or DataError.
    """
    checkpoint = find_checkpoint(path)
    config = checkpoint_config(checkpoint, overrides)
    shards = open_shards(data, config.data.val_split)
    _check_classes(checkpoint, shards)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_trained(checkpoint, config).to(device).eval()
    dtype = AUTOCAST.get(resolve_precision(config.engine.precision, device))
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        return evaluate(model, evaluation_loader(shards, config), config.data, device)


def _check_classes(checkpoint: Path, shards: Shards) -> None:
    learned, present = layout.read_state(checkpoint).classes, shards.classes
    if len(learned) != len(present):
        raise ConfigError(
            f"{checkpoint} knows {len(learned)} classes, {shards.location} has {len(present)}: "
            "it was trained on other data"
        )
    for number, (ours, theirs) in enumerate(zip(learned, present, strict=True)):
        if ours != theirs:
            raise ConfigError(
                f"{checkpoint} knows class {number} as '{ours}', {shards.location} as '{theirs}': "
                "evaluate it on shards with the classes, in the order, that it was trained on"
            )
