"""Opening a trained model from a run, one of its checkpoints, or a file of `vmp export`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from model import VideoMamba
from pipeline.checkpoint.layout import read_state
from pipeline.checkpoint.trained import checkpoint_config, find_checkpoint, load_trained, model_with
from pipeline.config import RunConfig, apply_overrides, build_config
from pipeline.errors import ConfigError
from pipeline.inference.exported import read_exported


class Trained(NamedTuple):
    source: Path
    """The checkpoint or the exported file."""
    model: VideoMamba
    """The model, on the CPU."""
    config: RunConfig
    classes: tuple[str, ...]
    """Class names, in the order of the rows of the classification head."""


def open_trained(path: Path, overrides: Sequence[str] = (), *, raw: bool = False) -> Trained:
    """Open a trained model, with averaged weights if kept, unless `raw` or `eval.use_ema=false`.

    Raises CheckpointError, WeightsError or ConfigError.
    """
    if path.is_file():
        return _from_file(path, overrides, raw=raw)
    checkpoint = find_checkpoint(path)
    config = checkpoint_config(checkpoint, [*overrides, *(["eval.use_ema=false"] if raw else [])])
    classes = read_state(checkpoint).classes
    return Trained(checkpoint, load_trained(checkpoint, config), config, classes)


def _from_file(path: Path, overrides: Sequence[str], *, raw: bool) -> Trained:
    if raw:
        raise ConfigError(f"{path}: holds one set of weights; --raw is for a run or a checkpoint")
    model, card = read_exported(path)
    tree = card.tree(model.config.model_dump(mode="json"))
    apply_overrides(tree, overrides)
    config = build_config(tree, source=str(path))
    return Trained(path, model_with(model.state_dict(), config, str(path)), config, card.classes)
