"""What a healthy run looks like, and when it counts as hung."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class HealthConfig(BaseModel):
    """Watching a run and its nodes; no part of what the run computes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
