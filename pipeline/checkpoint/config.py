"""When to save and what to keep."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class CheckpointConfig(BaseModel):
    """Saving is asynchronous: a step waits for the copy to host memory, not for the disk."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    every_steps: int = Field(default=500, gt=0)
    """Optimizer steps from one checkpoint to the next."""
    keep_last: int = Field(default=2, gt=0)
    """Newest checkpoints kept; two, so that a corrupt one has a predecessor."""
    keep_best: bool = True
    """Save when an evaluation gives the highest top-1 so far, and keep that one as well."""
    keep_every_steps: int | None = Field(default=None, gt=0)
    """Keep those at multiples of this step for ever."""
    commit_timeout_s: float = Field(default=300, gt=0)
    """How long rank 0 waits for the other ranks' shards to appear. Keep it below
    engine.step_timeout_s: the others may wait for rank 0 in a collective meanwhile."""
