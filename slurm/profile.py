"""Where and how jobs run: one profile per cluster, in YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from slurm.errors import ClusterError
from slurm.policy import RetryPolicy

_MIN_GRACE_S = 30
# What the system itself tells sbatch and srun, and what would undo it.
_OWN_SBATCH = {
    "array", "dependency", "error", "no-requeue", "nodes", "ntasks", "ntasks-per-node",
    "open-mode", "output", "requeue", "signal", "time",
}  # fmt: skip
_OWN_SRUN = {
    "--cpus-per-task": "set cpus_per_task: srun and sbatch must agree",
    "-c": "set cpus_per_task: srun and sbatch must agree",
    "--error": "logs are found by their names",
    "--output": "logs are found by their names",
    "--open-mode": "logs of a requeued job must go on, not start again",
    "--kill-on-bad-exit": "ranks that wait for a dead one would hang",
    "--nodes": "use --nodes of the command",
    "--ntasks": "ranks are counted by --nodes and --gpus-per-node",
    "-N": "use --nodes of the command",
    "-n": "ranks are counted by --nodes and --gpus-per-node",
}


class Container(BaseModel):
    """Run the ranks in a container; the batch script itself stays outside."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    runtime: Literal["pyxis", "apptainer"] = "pyxis"
    """pyxis = `srun --container-image`; apptainer = `apptainer exec` around Python."""
    image: str
    mounts: tuple[str, ...] = ()
    """Host paths, or source:target; the runs directory and the shards must be among them."""
    python: str = "python3"
    """The interpreter inside."""


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
    cpus_per_task: int | None = Field(default=None, gt=0)
    """null = what the ranks need: two more than the loader processes of each."""
    mem_gb: int | None = Field(default=None, gt=0)
    retry: RetryPolicy = RetryPolicy()
    bad_node_hours: float = Field(default=24, ge=0)
    """Nodes at which a run of this directory failed are avoided for so long; 0 = never."""
    setup: tuple[str, ...] = ()
    """Shell lines run before Python: module load, source env, ..."""
    srun_args: tuple[str, ...] = ()
    """Further srun arguments; --cpus-per-task is always passed on, as srun would drop it."""
    container: Container | None = None
    extra: dict[str, str | int | bool] = {}
    """Any other #SBATCH option, by its long name."""

    @model_validator(mode="after")
    def _limit_leaves_time_to_save(self) -> ClusterProfile:
        if self.grace_s < _MIN_GRACE_S:
            raise ValueError(
                f"grace_s={self.grace_s} is too short for a step, a save and the requeueing: "
                f"give at least {_MIN_GRACE_S}"
            )
        if self.grace_s >= self.time_min * 60 / 2:
            raise ValueError(
                f"time_min={self.time_min} leaves no room for grace_s={self.grace_s}: "
                "give the job at least twice the grace period"
            )
        return self

    @model_validator(mode="after")
    def _nothing_undoes_what_resuming_rests_on(self) -> ClusterProfile:
        for key in self.extra:
            if key.replace("_", "-") in _OWN_SBATCH:
                raise ValueError(f"extra.{key} is set by the system itself: remove it")
        for argument in self.srun_args:
            option = argument.partition("=")[0]
            if option in _OWN_SRUN:
                raise ValueError(f"srun_args: {option} is not allowed: {_OWN_SRUN[option]}")
        for line in self.setup:
            if line.strip().startswith(("set -e", "set -o errexit", "exec ", "exit")):
                raise ValueError(
                    f"setup: '{line}' would end the batch script before it can requeue the run"
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
    except (yaml.YAMLError, UnicodeDecodeError) as error:
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
