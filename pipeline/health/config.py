"""What a healthy run looks like, and when it counts as hung."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class HealthConfig(BaseModel):
    """Watching a run and its nodes; no part of what the run computes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    hang_timeout_s: float | None = Field(default=1800, gt=0)
    """A rank that has finished no step, batch of an evaluation or save for so long has hung: all
    ranks dump their stacks into logs/ and the run ends. Until the first step is done, at least
    engine.init_timeout_s. null = wait for ever."""
    straggler_factor: float = Field(default=1.5, gt=1)
    """A rank that needs so many times the median for itself (data and forward) is named in the
    log."""
    min_free_gib: float = Field(default=1, ge=0)
    """Free space that a run starts with, in its directory and in the temporary directory."""
    max_clock_skew_s: float = Field(default=60, gt=0)
    """How far the clock of a host may be from the median of all ranks."""


class StopConfig(BaseModel):
    """When a run ends itself, to go on later."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    after_s: float | None = Field(default=None, gt=0)
    """Stop and save after this many seconds, well before the scheduler would kill the job."""
