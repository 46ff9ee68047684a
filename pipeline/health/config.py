"""Configuration of health checks, of hang detection and of stopping in time."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class HealthConfig(BaseModel):
    """Limits for watching a run and its nodes; none of them changes what the run computes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    hang_timeout_s: float | None = Field(default=1800, gt=0)
    """How long a rank may go without finishing a step, an evaluation batch or a save before it
    counts as hung. All ranks then dump their stacks into logs/ and the run ends. Before the first
    step is done, the limit is at least engine.init_timeout_s. null = no limit."""
    straggler_factor: float = Field(default=1.5, gt=1)
    """Name a rank in the log when its own time per step (data and forward) exceeds this multiple
    of the median."""
    min_free_gib: float = Field(default=1, ge=0)
    """Free space that a run needs to start, in its own and in the temporary directory, in GiB."""
    max_clock_skew_s: float = Field(default=60, gt=0)
    """Largest difference between a host's clock and the median of all ranks' clocks."""


class StopConfig(BaseModel):
    """When a run stops by itself, to be resumed later."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    after_s: float | None = Field(default=None, gt=0)
    """Save and stop after this many seconds; choose it well before the scheduler's time limit."""
