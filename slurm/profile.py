"""The cluster profile: where and how jobs run, in one YAML file per cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from slurm.errors import ClusterError
from slurm.options import sbatch_refusal, srun_refusal
from slurm.policy import RetryPolicy

_MIN_GRACE_S = 30
# PyYAML raises these on text that is not YAML, or with tags and dates that it cannot convert.
_NOT_YAML = (
    yaml.YAMLError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class Container(BaseModel):
    """The container in which ranks run; the batch script itself stays outside."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    runtime: Literal["pyxis", "apptainer"] = "pyxis"
    """pyxis = `srun --container-image`; apptainer = `apptainer exec` around Python."""
    image: str
    mounts: tuple[str, ...] = ()
    """Host paths, or source:target; the runs directory and the shards must be among them."""
    python: str = "python3"
    """The Python interpreter inside the container."""


class ClusterProfile(BaseModel):
    """Options for sbatch. Fields that are not set take the cluster's defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    """Nodes to avoid, in SLURM's notation: node[3,7-9]."""
    time_min: int = Field(default=24 * 60, gt=0)
    """Wall-clock limit of one job; a run continues over as many jobs as it needs."""
    grace_s: int = Field(default=120, gt=0)
    """Seconds before the limit at which the run is told to save and stop."""
    cpus_per_task: int | None = Field(default=None, gt=0)
    """null = what the ranks need: two more than the loader processes of each."""
    mem_gb: int | None = Field(default=None, gt=0)
    retry: RetryPolicy = RetryPolicy()
    bad_node_hours: float = Field(default=24, ge=0)
    """How long a node is avoided after a run of this directory failed on it; 0 = not at all."""
    setup: tuple[str, ...] = ()
    """Shell lines run before Python: module load, source env, ..."""
    srun_args: tuple[str, ...] = ()
    """Further srun arguments, each written --option=value. --cpus-per-task is always passed on,
    because srun does not inherit it."""
    container: Container | None = None
    extra: dict[str, str | int | bool] = {}
    """Other #SBATCH options by their long names."""

    @model_validator(mode="after")
    def _every_text_is_one_line(self) -> ClusterProfile:
        """Refuse line breaks: a second line would be another #SBATCH option or command."""
        for field, value in self.model_dump().items():
            for text in _texts(value):
                if not text.replace("\t", " ").isprintable():
                    raise ValueError(f"{field}: {text!r} holds a line break or control character")
        return self

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
            if refusal := sbatch_refusal(key):
                raise ValueError(f"extra.{key} {refusal}")
        for argument in self.srun_args:
            if refusal := srun_refusal(argument):
                raise ValueError(f"srun_args: {argument.partition('=')[0]} {refusal}")
        for line in self.setup:
            if line.strip().startswith(("set -e", "set -o errexit", "exec ", "exit")):
                raise ValueError(
                    f"setup: '{line}' would end the batch script before it can requeue the run"
                )
        return self


def _texts(value: object) -> Iterator[str]:
    """Every text in a tree of values, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from _texts(pair)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def load_profile(path: Path | None) -> ClusterProfile:
    """Load the profile of a YAML file; None gives the defaults.

    Raises ClusterError naming the file and the key.
    """
    if path is None:
        return ClusterProfile()
    try:
        raw = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise ClusterError(f"profile {path}: cannot be read: {error.strerror}") from error
    except _NOT_YAML as error:
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
