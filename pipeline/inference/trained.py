"""Opening a trained model from whatever holds its weights: see `pipeline.checkpoint.source`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from model import VideoMamba
from pipeline.checkpoint.layout import read_state
from pipeline.checkpoint.source import locate
from pipeline.checkpoint.trained import checkpoint_config, load_trained, model_with
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
    """Class names, in the order of the rows of the classification head; empty if the source has
    none, as a converted or released file."""


def open_trained(path: Path, overrides: Sequence[str] = (), *, raw: bool = False) -> Trained:
    """Open a trained model, with averaged weights if kept, unless `raw` or `eval.use_ema=false`.

    Raises CheckpointError, WeightsError or ConfigError.
    """
    checkpoint = locate(path)
    if checkpoint.is_file():
        return _from_file(checkpoint, overrides, raw=raw)
    config = checkpoint_config(checkpoint, [*overrides, *(["eval.use_ema=false"] if raw else [])])
    classes = read_state(checkpoint).classes
    return Trained(checkpoint, load_trained(checkpoint, config), config, classes)


def _from_file(path: Path, overrides: Sequence[str], *, raw: bool) -> Trained:
    if raw:
        raise ConfigError(f"{path}: holds one set of weights; --raw is for a run or a checkpoint")
    model, card = read_exported(path)
    fields = model.config.model_dump(mode="json")
    without_card = {"name": "weights", "model": fields, "data": {"train": "."}}
    tree = without_card if card is None else card.tree(fields)
    apply_overrides(tree, overrides)
    config = build_config(tree, source=str(path))
    classes = () if card is None else card.classes
    return Trained(path, model_with(model.state_dict(), config, str(path)), config, classes)
