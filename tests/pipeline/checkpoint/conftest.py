"""A run directory with one checkpoint, which no training made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model import VideoMamba, create_model
from pipeline.checkpoint.config import CheckpointConfig
from pipeline.checkpoint.layout import RunState
from pipeline.checkpoint.save import CheckpointSaver
from pipeline.config import RunConfig, load_config
from pipeline.training.distributed import World
from pipeline.training.zero_state import Fragment

CLASSES = ("class0", "class1", "class2")


def weights_of(model: VideoMamba) -> Iterator[Fragment]:
    """The parameters, whole."""
    for name, tensor in model.state_dict().items():
        yield Fragment(name, 0, {"param": tensor.flatten()})


def config(num_classes: int = 3, **fields: object) -> RunConfig:
    overrides = ["model.preset=videomambapro-tiny-test", f"model.num_classes={num_classes}"]
    return load_config("demo", overrides + [f"{key}={value}" for key, value in fields.items()])


@pytest.fixture
def model() -> VideoMamba:
    return create_model(config().model)


@pytest.fixture
def run(tmp_path: Path, model: VideoMamba) -> Path:
    """A run directory with one checkpoint, of `model`."""
    save(tmp_path / "run", model, step=7)
    return tmp_path / "run"


def save(run: Path, model: VideoMamba, step: int, best_step: int = -1) -> None:
    """Add a checkpoint of `model` to a run directory."""
    alone = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    saver = CheckpointSaver(run / "checkpoints", CheckpointConfig(), alone)
    state = RunState(
        step=step,
        position=step,
        adam_steps=step,
        best_step=best_step,
        world_size=1,
        zero_stage=1,
        shapes={name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        classes=CLASSES,
        data_digest="d",
    )
    saver.save(weights_of(model), state, config().to_yaml())
    saver.finish()
