"""The typed tree of a run: what each section is, and which fields decide what a run is."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from model.config import ModelConfig
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
    runs_dir: Path = Path("runs")
    seed: int = 0
    deterministic: bool = False
    """Bitwise repeatable on one machine type; slower on GPUs."""
    init_from: Path | None = None
    """Weights to start from, adapted to the model: .safetensors of `vmp convert` or `vmp export`, a
    checkpoint, or a run directory. A run that has a checkpoint of its own reads them no more."""
    private: bool = False
    """Nobody else can read the files of the run (umask 077); otherwise your umask decides. Never
    can everybody write them."""
    log_every_steps: int = Field(default=10, gt=0)
    log_samples: bool = False
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
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    tracking: TrackingConfig = TrackingConfig()
    stop: StopConfig = StopConfig()
    health: HealthConfig = HealthConfig()
    launch: LaunchConfig = LaunchConfig()

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
        """The fields that a resumed run must share with its checkpoint, flattened to dotted keys.

        Left out is what changes where and how fast the run goes but not where it ends: ranks,
        ZeRO stage, micro-batch, loader processes, tracking, saving and logging.
        """
        kept = self.model_dump(mode="json")
        for section in (
            "runs_dir",
            "private",
            "log_every_steps",
            "log_samples",
            "checkpoint",
            "tracking",
            "stop",
            "health",
            "launch",
        ):
            del kept[section]
        flat = dict(flatten(kept))
        if self.ema.decay is None:  # so that runs from before there was one keep their identity
            del flat["ema.decay"]
        return {key: value for key, value in flat.items() if key not in _NOT_IDENTITY}

    def digest(self) -> str:
        """Short hash of `identity`."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


_NOT_IDENTITY = frozenset(
    {
        "batch.max_micro",
        # Which data it is, `RunState.data_digest` says; where it lies may change.
        "data.train",
        "data.val",
        "data.ffcv_cache",
        "data.max_bad_samples",
        "data.verify_reads",
        "data.cache_dir",
        "data.cache_gib",
        "data.decoder",
        "data.read_attempts",
        "data.workers",
        "data.prefetch",
        "data.worker_start",
        "engine.compile",
        "engine.tf32",
        "engine.zero_stage",
        "engine.init_timeout_s",
        "engine.step_timeout_s",
        "eval.batch_size",
        "eval.use_ema",
        "model.activation_checkpointing",
        "model.scan_backend",
    }
)


def config_difference(old: RunConfig, new: RunConfig) -> list[str]:
    """One line `key: old -> new` for each identity field in which two runs differ."""
    before, after = old.identity(), new.identity()
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
