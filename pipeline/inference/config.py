"""Configuration of evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from model.operational import OPERATIONAL


class EvalConfig(BaseModel):
    """How often and on which views the model is evaluated."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    every_epochs: float = Field(default=1, gt=0)
    """Epochs between evaluations. The end of training always has one; with a number larger than
    schedule.epochs it is the only one."""
    batch_size: Annotated[int, OPERATIONAL] = Field(default=16, gt=0)
    """Videos per rank and forward pass."""
    clips: int = Field(default=1, gt=0)
    """Temporal views per video."""
    crops: Literal[1, 3] = 1
    """Spatial views per clip: the centre, or three along the long side."""
    use_ema: Annotated[bool, OPERATIONAL] = True
    """Evaluate the moving average of the weights if ema.decay keeps one."""
    shuffle_frames: bool = False
    """Put the frames of every clip in a random order, which should break a model that reads
    motion."""
