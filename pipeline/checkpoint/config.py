"""Configuration of saving and of the checkpoints to keep."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class CheckpointConfig(BaseModel):
    """When to save and which checkpoints to keep. Saving is asynchronous: training waits for the
    copy to host memory, not for the disk."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    every_steps: int = Field(default=500, gt=0)
    """Optimizer steps between two checkpoints."""
    keep_last: int = Field(default=2, gt=0)
    """How many of the newest checkpoints to keep. With two, a run can resume even if the newest
    one is corrupt."""
    keep_best: bool = True
    """Save when an evaluation gives the highest top-1 so far, and keep that checkpoint too."""
    keep_every_steps: int | None = Field(default=None, gt=0)
    """Never delete checkpoints at multiples of this step; null = keep no such checkpoints."""
    commit_timeout_s: float = Field(default=300, gt=0)
    """How long rank 0 waits for the shards of the other ranks. Keep it below
    engine.step_timeout_s, because the others may meanwhile wait for rank 0 in a collective."""
