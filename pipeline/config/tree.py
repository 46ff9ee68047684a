"""The typed tree of a run: what each section is, and which fields decide what a run is."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from model.config import ModelConfig
from model.operational import OPERATIONAL
from pipeline.checkpoint.config import CheckpointConfig
from pipeline.data.config import DataConfig
from pipeline.health.config import HealthConfig, StopConfig
from pipeline.inference.config import EvalConfig
from pipeline.tracking import TrackingConfig
from pipeline.training.config import (
    BatchConfig,
    EmaConfig,
    EngineConfig,
    GuardConfig,
    LaunchConfig,
    LossConfig,
    OptimConfig,
    ScheduleConfig,
)


class RunConfig(BaseModel):
    """Everything that decides a run; saved as config.yaml in the run directory."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """Run directory under `runs_dir`, and the name of the MLflow run."""
    runs_dir: Annotated[Path, OPERATIONAL] = Path("runs")
    """Directory that holds the run directories, the snapshots of the code and the MLflow store."""
    seed: int = 0
    """Seed of the weights, the order of the samples and every random draw."""
    deterministic: bool = False
    """Bitwise repeatable on one machine type; slower on GPUs."""
    init_from: Path | None = None
    """Weights to start from, adapted to the model: .safetensors of `vmp convert` or `vmp export`, a
    checkpoint, or a run directory. A run that has a checkpoint of its own reads them no more."""
    private: Annotated[bool, OPERATIONAL] = False
    """Nobody else can read the files of the run (umask 077); otherwise your umask decides. Never
    can everybody write them."""
    log_every_steps: Annotated[int, OPERATIONAL] = Field(default=10, gt=0)
    """Optimizer steps from one row of metrics to the next."""
    log_samples: Annotated[bool, OPERATIONAL] = False
    """Write the key of every training sample to logs/, one file per rank: proof of exactness."""

    model: ModelConfig
    data: DataConfig
    batch: BatchConfig = BatchConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    engine: EngineConfig = EngineConfig()
    ema: EmaConfig = EmaConfig()
    guard: GuardConfig = GuardConfig()
    checkpoint: Annotated[CheckpointConfig, OPERATIONAL] = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    tracking: Annotated[TrackingConfig, OPERATIONAL] = TrackingConfig()
    stop: Annotated[StopConfig, OPERATIONAL] = StopConfig()
    health: Annotated[HealthConfig, OPERATIONAL] = HealthConfig()
    launch: Annotated[LaunchConfig, OPERATIONAL] = LaunchConfig()

    @field_validator("name")
    @classmethod
    def _name_is_one_path_component(cls, name: str) -> str:
        if not name or name != Path(name).name or name.startswith(".") or not name.isprintable():
            raise ValueError(f"must be a plain directory name, not {name!r}")
        return name

    @model_validator(mode="after")
    def _numbers_are_finite(self) -> RunConfig:
        for key, value in flatten(self.model_dump()):
            for number in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(number, float) and not math.isfinite(number):
                    raise ValueError(f"{key}: must be a finite number (got {number})")
        return self

    @property
    def run_dir(self) -> Path:
        return self.runs_dir / self.name

    def batch_split(self, world_size: int) -> tuple[int, int]:
        """(micro-batch per rank, accumulation steps), see `BatchConfig.split`."""
        return self.batch.split(world_size, multiple_of=2 if self.data.mix.is_on else 1)

    def identity(self) -> dict[str, Any]:
        """The fields that a resumed run must share with its checkpoint: dotted key -> JSON value.

        Those marked OPERATIONAL are left out: they change where and how fast the run goes, not
        where it ends.
        """
        return dict(_identity(self, self.model_dump(mode="json")))

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _identity(
    section: BaseModel, dumped: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for name, field in type(section).model_fields.items():
        if OPERATIONAL in field.metadata:
            continue
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _identity(value, dumped[name], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", dumped[name]


class Difference(NamedTuple):
    """An identity field in which two configurations are not alike."""

    key: str
    stored: Any
    given: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.stored!r} -> {self.given!r}"


def config_difference(stored: RunConfig, given: RunConfig) -> list[Difference]:
    """The identity fields in which two runs differ, by their keys.

    A field that did not exist when `stored` was written has its default there, since it was read
    through this version's tree.
    """
    before, after = stored.identity(), given.identity()
    return [
        Difference(key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def refusal(differences: Sequence[Difference]) -> str:
    """How two runs differ and what to do about it, for the end of an error."""
    shown = "; ".join(map(str, differences))
    kept = " ".join(f"{key}={_yaml(stored)}" for key, stored, _ in differences)
    return (
        f"({shown}; stored -> given): to go on with it give {kept}, to start another run choose "
        "another name=..."
    )


def _yaml(value: Any) -> str:
    """As an override that the shell takes for one word."""
    return shlex.quote(json.dumps(value)) if not isinstance(value, str) else shlex.quote(value)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
