"""Loading a recipe into a validated tree; errors name the dotted path and the closest match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from model.config import ModelConfig, resolve_config
from model.errors import ModelConfigError, brief
from model.invalid import did_you_mean, field_path, first_problem, section_type, variants
from pipeline.config.auto import DataFacts, settle
from pipeline.config.overrides import apply_overrides
from pipeline.config.recipe import merge, read_layers
from pipeline.config.tree import RunConfig
from pipeline.data.config import DataConfig
from pipeline.data.errors import DataError
from pipeline.errors import ConfigError

PRESET = "preset"
"""Key of the `model` section that stands for a set of its fields; only recipes contain it."""


def load_config(recipe: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Load a recipe, a YAML file or the name of a shipped one, and apply `a.b=c` overrides.

    Values of `auto` are computed from the shards.
    Raises ConfigError for an unknown recipe, an unknown key (with the closest match), a bad value,
    or shards that are needed and cannot be read.
    """
    raw = read_merged(recipe)
    apply_overrides(raw, overrides)
    _refuse_unknown_keys(raw, str(recipe))
    tree = settle(raw, lambda: _data_facts(raw, str(recipe)))
    return build_config(tree, source=str(recipe))


def read_merged(recipe: str | Path) -> dict[str, Any]:
    """Return a recipe merged with its bases, as read from YAML, once all of their keys are known.

    Raises ConfigError, which names the file at fault.
    """
    layers = read_layers(recipe)
    for layer in layers:
        _refuse_unknown_keys(layer.own, layer.source)
    return merge(layers)


def build_config(raw: Mapping[str, Any], source: str) -> RunConfig:
    """Validate a tree as read from YAML, after expanding `model.preset`.

    Raises ConfigError, which begins with `source`, for an unknown key or a bad value.
    """
    _refuse_unknown_keys(raw, source)
    tree = dict(raw)
    if isinstance(tree.get("model"), Mapping):
        fields = dict(tree["model"])
        preset = fields.pop(PRESET, None)
        if preset is not None and not isinstance(preset, str):
            raise ConfigError(f"{source}: model.preset: must be a name (got {brief(preset)})")
        try:
            base = resolve_config(preset).model_dump() if preset else {}
        except ModelConfigError as error:
            raise ConfigError(f"{source}: model.preset: {error}") from error
        tree["model"] = base | fields
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_problem(error)}") from error


def _data_facts(raw: Mapping[str, Any], source: str) -> DataFacts:
    from pipeline.data.shards import open_shards

    given = raw.get("data")
    data = given if isinstance(given, Mapping) else {}
    location = data.get("train")
    split = data.get("train_split", DataConfig.model_fields["train_split"].default)
    try:
        shards = open_shards(str(location), str(split))
    except DataError as error:
        raise ConfigError(
            f"{source}: values that are auto follow from data.train, which cannot be read ({error})"
        ) from error
    return DataFacts(classes=len(shards.classes), clips=len(shards))


def _problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    if problem["type"] == "union_tag_not_found":
        path = ".".join(str(part) for part in problem["loc"])
        choices = variants(RunConfig, path)
        return f"{path}.kind is missing: set it to one of {', '.join(choices)}"
    if problem["type"] == "missing":
        path = ".".join(str(part) for part in field_path(RunConfig, problem["loc"]))
        return f"{path} is missing: set it in the recipe or with {path}=..."
    return first_problem(error, RunConfig)


def _refuse_unknown_keys(raw: Mapping[str, Any], source: str) -> None:
    """Raise ConfigError for an unknown key, before validation reports missing ones.

    The correct name of a misspelt section is missing too, and that message would mislead.
    """
    if unknown := _unknown_key(raw, RunConfig):
        raise ConfigError(f"{source}: {unknown}")


def _unknown_key(raw: Mapping[str, Any], node: type[BaseModel], prefix: str = "") -> str | None:
    """Return the problem with the first unknown key in any section; None when all are known.

    Keys of outer sections come first.
    """
    known = [*node.model_fields, *([PRESET] if node is ModelConfig else [])]
    for key in raw:
        if key not in known:
            return f"unknown key {prefix}{key}: {did_you_mean(str(key), known, 'known keys')}"
    for key, value in raw.items():
        section = section_type(node, key) or _variant(node, key, value)
        nested = value if section is not None and isinstance(value, Mapping) else {}
        if section is not None and (found := _unknown_key(nested, section, f"{prefix}{key}.")):
            return found
    return None


def _variant(node: type[BaseModel], key: str, value: Any) -> type[BaseModel] | None:
    """Return the model that `value` chooses by its tag; None when it chooses none."""
    info = node.model_fields.get(key)  # `model.preset` is a key and no field
    if info is None or not isinstance(info.discriminator, str) or not isinstance(value, Mapping):
        return None
    return variants(node, key).get(str(value.get(info.discriminator)))
