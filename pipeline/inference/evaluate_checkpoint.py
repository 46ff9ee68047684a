"""Evaluation of a checkpoint outside training, in one process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.data.shards import Shards, open_shards
from pipeline.errors import ConfigError
from pipeline.inference.evaluate import EvalResult, evaluate
from pipeline.inference.loader import evaluation_loader
from pipeline.inference.trained import Trained, open_trained
from pipeline.training.precision import AUTOCAST, resolve_precision


def evaluate_checkpoint(path: Path, data: Path, overrides: Sequence[str] = ()) -> EvalResult:
    """Evaluate a run, a checkpoint or exported weights on the validation split of `data`.

    Overrides can set any field, such as `data.val_split=test`, `eval.clips=4`,
    `eval.shuffle_frames=true` or `eval.use_ema=false`.
    Raises CheckpointError, WeightsError, ConfigError or DataError.
    """
    trained = open_trained(path, overrides)
    config = trained.config
    shards = open_shards(data, config.data.val_split)
    _check_classes(trained, shards)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = trained.model.to(device).eval()
    dtype = AUTOCAST.get(resolve_precision(config.engine.precision, device))
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        return evaluate(model, evaluation_loader(shards, config), config.data, device)


def _check_classes(trained: Trained, shards: Shards) -> None:
    checkpoint, learned, present = trained.source, trained.classes, shards.classes
    known = trained.config.model.num_classes
    if known != len(present):
        raise ConfigError(
            f"{checkpoint} knows {known} classes, {shards.location} has {len(present)}: "
            "it was trained on other data"
        )
    if not learned:
        return
    for number, (ours, theirs) in enumerate(zip(learned, present, strict=True)):
        if ours != theirs:
            raise ConfigError(
                f"{checkpoint} knows class {number} as '{ours}', {shards.location} as '{theirs}': "
                "evaluate it on shards with the classes, in the order, that it was trained on"
            )
