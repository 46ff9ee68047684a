"""Loading the trained model of a checkpoint outside of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from model import VideoMamba, create_model
from model.containers import FOREIGN
from pipeline.checkpoint import layout
from pipeline.checkpoint.load import read_weights
from pipeline.config import RunConfig, apply_overrides, build_config, in_todays_words
from pipeline.config.yaml_text import parse_yaml
from pipeline.errors import CheckpointError, ConfigError


def checkpoint_config(checkpoint: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the configuration of a checkpoint and apply overrides.

    Raises CheckpointError when its config.yaml is missing or damaged, and ConfigError for a bad
    override.
    """
    path = checkpoint / layout.CONFIG_FILE
    try:
        raw = parse_yaml(path.read_bytes(), layout.CONFIG_FILE)
    except (OSError, ConfigError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise CheckpointError(
            f"checkpoint {checkpoint}: {layout.CONFIG_FILE} cannot be read: {reason}"
        ) from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"checkpoint {checkpoint}: {layout.CONFIG_FILE} has no sections")
    raw = in_todays_words(raw)
    apply_overrides(raw, overrides)
    return build_config(raw, source=str(path))


def load_trained(checkpoint: Path, config: RunConfig) -> VideoMamba:
    """Load the model of a committed checkpoint on the CPU, with averaged weights if `eval.use_ema`.

    Raises CheckpointError for a damaged checkpoint, and ConfigError when `config` describes another
    model or when the run trained no classifier.
    """
    weights = backbone_weights(checkpoint, config)
    if config.task.kind == "masked":
        raise ConfigError(
            f"checkpoint {checkpoint}: masked pre-training has no classification head: fine-tune "
            "from it with init_from=..., or make it a teacher with task.teacher.path=..."
        )
    return model_with(weights, config, f"checkpoint {checkpoint}")


def backbone_weights(checkpoint: Path, config: RunConfig) -> dict[str, Tensor]:
    """Read the weights of a committed checkpoint without the heads that only its task uses."""
    weights = read_weights(checkpoint, raw=not config.eval.use_ema)
    return {name: tensor for name, tensor in weights.items() if not FOREIGN.match(name)}


def load_backbone(checkpoint: Path, config: RunConfig) -> VideoMamba:
    """Load the model of a committed checkpoint without its classification head, on the CPU.

    Raises CheckpointError for a damaged checkpoint.
    """
    with torch.device("meta"):
        model = create_model(config.model)
    del model.head
    weights = backbone_weights(checkpoint, config)
    model.load_state_dict({name: weights[name] for name in model.state_dict()}, assign=True)
    return model


def model_with(weights: dict[str, Tensor], config: RunConfig, source: str) -> VideoMamba:
    """Build the model of `config` with `weights`, on the CPU.

    Raises ConfigError, which begins with `source`, when the weights are those of another model.
    """
    with torch.device("meta"):
        model = create_model(config.model)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ConfigError(
            f"{source} is not of this model ({reason}): leave model.* as it was"
        ) from error
    return model.requires_grad_()
