"""The typed configuration tree of a run, and the fields that form the run's identity."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from model.config import ModelConfig
from model.invalid import section_type, variants
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
    StabilityConfig,
)
from pipeline.training.tasks.config import ClassificationConfig, MaskedConfig, TaskConfig


class RunConfig(BaseModel):
    """The whole configuration of a run, saved as config.yaml in the run directory."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: Annotated[Literal[2], OPERATIONAL] = 2
    """Version of what the fields mean, for readers of a stored configuration."""
    name: str
    """Name of the run directory under `runs_dir` and of the MLflow run."""
    runs_dir: Annotated[Path, OPERATIONAL] = Path("runs")
    """Directory of the run directories, the code snapshots and the MLflow store."""
    seed: int = 0
    """Seed of the initial weights, the sample order and every random draw."""
    deterministic: bool = False
    """Make the run bitwise repeatable on machines of one type; slower on GPUs."""
    init_from: Path | None = None
    """Weights to start from, adapted to the model's shape: a file that was exported, converted or
    released, a checkpoint, or a run directory; RUN@best takes the run's best checkpoint instead of
    its last. Not read once the run has a checkpoint of its own."""
    private: Annotated[bool, OPERATIONAL] = False
    """Keep other users from reading the files of the run (umask 077). false = your umask decides,
    except that the files are never writable by everyone."""
    log_every_steps: Annotated[int, OPERATIONAL] = Field(default=10, gt=0)
    """Optimizer steps between two rows of metrics."""
    log_layers_every_steps: Annotated[int | None, OPERATIONAL] = Field(default=None, gt=0)
    """Optimizer steps between two rows of statistics per layer, a multiple of `log_every_steps`:
    norms of gradients, weights and updates, and magnitudes inside the mixers; null = none."""
    log_samples: Annotated[bool, OPERATIONAL] = False
    """Write the key of every training sample to logs/, one file per rank, as proof that no sample
    is lost or repeated."""

    model: ModelConfig
    data: DataConfig
    batch: BatchConfig = BatchConfig()
    task: TaskConfig = ClassificationConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    engine: EngineConfig = EngineConfig()
    ema: EmaConfig = EmaConfig()
    guard: GuardConfig = GuardConfig()
    stability: StabilityConfig = StabilityConfig()
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

    @model_validator(mode="after")
    def _layers_are_logged_with_the_rest(self) -> RunConfig:
        every = self.log_layers_every_steps
        if every is not None and every % self.log_every_steps:
            raise ValueError(
                f"log_layers_every_steps: {every} must be a multiple of "
                f"log_every_steps={self.log_every_steps}"
            )
        return self

    @model_validator(mode="after")
    def _parity_is_published(self) -> RunConfig:
        if self.optim.profile == "parity" and self.model.unpublished:
            name = self.model.unpublished[0]
            raise ValueError(
                f"model.{name}={getattr(self.model, name)} is published nowhere, and "
                "optim.profile=parity repeats what was published: leave out one of the two"
            )
        return self

    @model_validator(mode="after")
    def _masked_pre_training_fits(self) -> RunConfig:
        if isinstance(self.task, MaskedConfig) and self.model.direction == "forward":
            raise ValueError("task.kind=masked needs model.direction=bidirectional")
        if isinstance(self.task, MaskedConfig) and self.data.mix.is_on:
            raise ValueError(
                "data.mix mixes labels, which task.kind=masked does not use: switch it off"
            )
        return self

    @property
    def run_dir(self) -> Path:
        return self.runs_dir / self.name

    def batch_split(self, world_size: int) -> tuple[int, int]:
        """Return (micro-batch per rank, accumulation steps), see `BatchConfig.split`."""
        return self.batch.split(world_size, multiple_of=2 if self.data.mix.is_on else 1)

    def identity(self) -> dict[str, Any]:
        """Return the fields that a resumed run must share with its checkpoint.

        The result maps dotted key -> JSON value. Fields marked OPERATIONAL are left out, because
        they change where and how fast a run computes, but not its result.
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
    """An identity field in which two configurations differ."""

    key: str
    stored: Any
    given: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.stored!r} -> {self.given!r}"


def config_difference(stored: RunConfig, given: RunConfig) -> list[Difference]:
    """Return the identity fields in which two runs differ, sorted by key.

    `stored` was read through this version's tree, so a field that did not exist when it was
    written has its default value.
    """
    before, after = stored.identity(), given.identity()
    return [
        Difference(key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def refusal(differences: Sequence[Difference]) -> str:
    """Describe how two runs differ and what to do about it, as the end of an error message."""
    shown = "; ".join(map(str, differences))
    kept = " ".join(f"{key}={_yaml(stored)}" for key, stored, _ in differences)
    return (
        f"({shown}; stored -> given): to go on with it give {kept}, to start another run choose "
        "another name=..."
    )


def _yaml(value: Any) -> str:
    """Format a value for an override, quoted as one word of the shell."""
    return shlex.quote(json.dumps(value)) if not isinstance(value, str) else shlex.quote(value)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for every leaf."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def field_names(section: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Yield the dotted key of every field that a recipe may set, those of every task included."""
    for name in section.model_fields:
        one = section_type(section, name)
        inner = [one] if one is not None else list(variants(section, name).values())
        if not inner:
            yield f"{prefix}{name}"
        for each in inner:
            yield from field_names(each, f"{prefix}{name}.")
