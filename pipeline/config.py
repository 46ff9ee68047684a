"""One typed tree for a run: recipes, dotted overrides, and errors that name the dotted path."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from model.config import ModelConfig, resolve_config
from model.errors import ModelConfigError
from pipeline.checkpoint.config import CheckpointConfig
from pipeline.data.config import DataConfig
from pipeline.ema import EmaConfig
from pipeline.engine import EngineConfig
from pipeline.errors import ConfigError
from pipeline.evaluation.evaluate import EvalConfig
from pipeline.health.config import HealthConfig
from pipeline.health.guard import GuardConfig
from pipeline.health.stopping import StopConfig
from pipeline.optim import OptimConfig
from pipeline.schedule import ScheduleConfig
from pipeline.task import LossConfig
from pipeline.tracking import TrackingConfig


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class BatchConfig(_Section):
    """Videos per optimizer step, and how they are cut to the devices at hand."""

    global_size: int = Field(default=256, gt=0)
    """Videos per optimizer step over all ranks; never changes with the number of GPUs."""
    max_micro: int = Field(default=16, gt=0)
    """Videos that one device takes at once; accumulation fills up to `global_size`."""

    def split(self, world_size: int, multiple_of: int = 1) -> tuple[int, int]:
        """(micro-batch per rank, accumulation steps) for `world_size` ranks.

        The micro-batch is the largest up to `max_micro` that fits and is a multiple as asked
        (mixing pairs samples: 2). Raises ConfigError when the global batch cannot be dealt out.
        """
        if self.global_size % world_size:
            raise ConfigError(
                f"batch.global_size={self.global_size} cannot be dealt to {world_size} ranks: "
                "take a multiple, or another number of ranks"
            )
        share = self.global_size // world_size
        fitting = [m for m in range(1, min(share, self.max_micro) + 1) if share % m == 0]
        fitting = [m for m in fitting if m % multiple_of == 0]
        if not fitting:
            raise ConfigError(
                f"batch.global_size={self.global_size} over {world_size} ranks has no micro-batch "
                f"of 1 to {self.max_micro} that is a multiple of {multiple_of}: change "
                "batch.global_size, batch.max_micro or the number of ranks"
            )
        return fitting[-1], share // fitting[-1]


class LaunchConfig(_Section):
    """Processes on this machine, where no launcher has made them already."""

    ranks_per_node: int | None = Field(default=None, gt=0)
    """null = one per GPU, or one on a machine without."""
    threads_per_rank: int | None = Field(default=None, gt=0)
    """CPU threads of each rank; null = the cores divided by the ranks."""


class RunConfig(_Section):
    """Everything that decides a run; saved as config.yaml in the run directory."""

    name: str
    """Run directory under `runs_dir`, and the name of the MLflow run."""
    runs_dir: Path = Path("runs")
    seed: int = 0
    deterministic: bool = False
    """Bitwise repeatable on one machine type; slower on GPUs."""
    init_from: Path | None = None
    """Weights to start from, adapted to the model: .safetensors of `vmp convert` or `vmp export`, a
    checkpoint, or a run directory. A run that has a checkpoint of its own reads them no more."""
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
        if not name or name != Path(name).name or name.startswith("."):
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
        "engine.zero_stage",
        "engine.init_timeout_s",
        "engine.step_timeout_s",
        "eval.batch_size",
        "eval.use_ema",
        "model.activation_checkpointing",
        "model.scan_backend",
    }
)


def load_config(recipe: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The recipe (a YAML file or the name of a shipped one) with `a.b=c` overrides applied.

    Raises ConfigError: unknown recipe, unknown key (with the closest match), bad value.
    """
    raw = _read_recipe(recipe)
    apply_overrides(raw, overrides)
    return build_config(raw, source=str(recipe))


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set dotted keys in a tree as read from YAML, in place."""
    for override in overrides:
        _apply(raw, override)


def build_config(raw: Mapping[str, Any], source: str) -> RunConfig:
    """Validate a tree as read from YAML; `model.preset` is expanded here."""
    tree = dict(raw)
    if isinstance(tree.get("model"), Mapping):
        fields = dict(tree["model"])
        preset = fields.pop("preset", None)
        if preset is not None and not isinstance(preset, str):
            raise ConfigError(f"{source}: model.preset: must be a name (got {preset!r})")
        for field in fields:
            if field not in ModelConfig.model_fields:
                raise ConfigError(
                    f"{source}: {_unknown_key(f'model.{field}', ModelConfig.model_fields)}"
                )
        try:
            base = resolve_config(preset).model_dump() if preset else {}
        except ModelConfigError as error:
            raise ConfigError(f"{source}: model.preset: {error}") from error
        tree["model"] = base | fields
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first_problem(error)}") from error


def shipped_recipes() -> list[str]:
    folder = resources.files("pipeline") / "recipes"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if ".yaml" in p.name)


def config_difference(old: RunConfig, new: RunConfig) -> list[str]:
    """One line `key: old -> new` for each identity field in which two runs differ."""
    before, after = old.identity(), new.identity()
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _read_recipe(recipe: str | Path) -> dict[str, Any]:
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"recipe {path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"recipe {path}: not UTF-8 text ({error.reason})") from error
    else:
        known = shipped_recipes()
        if str(recipe) not in known:
            close = difflib.get_close_matches(str(recipe), known, n=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            raise ConfigError(
                f"unknown recipe '{recipe}': {hint}shipped are {', '.join(known)}; "
                "or give the path of a .yaml file"
            )
        text = (resources.files("pipeline") / "recipes" / f"{recipe}.yaml").read_text()
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {recipe}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"recipe {recipe}: must be a mapping of sections")
    return raw


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override '{override}' must have the form section.field=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override '{override}': the value is not YAML") from error
    if isinstance(value, str):
        value = _number(value)
    *parents, leaf = key.split(".")
    node = raw
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override '{override}': '{parent}' is a value, not a section")
        node = child
    node[leaf] = value


def _number(text: str) -> str | float:
    # YAML 1.1 takes 1e-3 for a string because it has no dot.
    try:
        return float(text)
    except ValueError:
        return text


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return _unknown_key(path, _fields_at(problem["loc"][:-1]))
    if problem["type"] == "missing":
        return f"{path} is missing: set it in the recipe or with {path}=..."
    message = problem["msg"].removeprefix("Value error, ")
    return f"{path}: {message} (got {problem['input']!r})" if path else message


def _fields_at(path: Sequence[int | str]) -> Mapping[str, Any]:
    node: type[BaseModel] = RunConfig
    for part in path:
        annotation = node.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return {}
        node = annotation
    return node.model_fields


def _unknown_key(path: str, known: Mapping[str, Any]) -> str:
    leaf = path.rpartition(".")[2]
    close = difflib.get_close_matches(leaf, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(known)}"
    return f"unknown key {path}: {hint}"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
