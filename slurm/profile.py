"""Where and how jobs run: one profile per cluster, in YAML."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from slurm.errors import ClusterError


class ClusterProfile(BaseModel):
    """What sbatch is told. Unset fields are left to the cluster's defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    """Nodes to avoid, as SLURM writes lists: node[3,7-9]."""
    time_min: int = Field(default=24 * 60, gt=0)
    """Wall-clock limit of one job; a run goes on over as many as it needs."""
    grace_s: int = Field(default=120, gt=0)
    """Seconds before the limit at which the run is told to save and stop."""
    cpus_per_task: int = Field(default=4, gt=0)
    mem_gb: int | None = Field(default=None, gt=0)
    max_requeues: int = Field(default=100, ge=0)
    """Time limits and preemptions that a run survives before it stays down."""
    setup: tuple[str, ...] = ()
    """Shell lines run before Python: module load, source env, ..."""
    srun_args: tuple[str, ...] = ()
    """Further srun arguments; --cpus-per-task is always passed on, as srun would drop it."""
    extra: dict[str, str | int | bool] = {}
    """Any other #SBATCH option, by its long name."""

    @model_validator(mode="after")
    def _limit_leaves_time_to_save(self) -> ClusterProfile:
        if self.grace_s >= self.time_min * 60 / 2:
            raise ValueError(
                f"time_min={self.time_min} leaves no room for grace_s={self.grace_s}: "
                "give the job at least twice the grace period"
            )
        return self


def load_profile(path: Path | None) -> ClusterProfile:
    """The profile of a YAML file; all defaults for None.

    Raises ClusterError naming the file and the key.
    """
    if path is None:
        return ClusterProfile()
    try:
        raw = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise ClusterError(f"profile {path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ClusterError(f"profile {path}: not YAML: {' '.join(str(error).split())}") from error
    try:
        return ClusterProfile.model_validate(raw)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        known = ", ".join(ClusterProfile.model_fields)
        reason = (
            f"unknown key; known are {known}"
            if problem["type"] == "extra_forbidden"
            else problem["msg"].removeprefix("Value error, ")
        )
        raise ClusterError(f"profile {path}: {key}: {reason}".replace(": :", ":")) from error
