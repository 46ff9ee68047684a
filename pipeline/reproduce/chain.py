"""The stages that lead to a row: recipes, each after those whose weights it needs.

`stages.yaml` beside this module states what a recipe starts from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from model.invalid import did_you_mean
from pipeline.config import RunConfig, load_config
from pipeline.errors import ConfigError
from pipeline.reproduce.rows import read_data

_RELEASED = "released"


@dataclass(frozen=True)
class Origin:
    """What a recipe starts from, and the released file that stands for what it ends with."""

    inputs: dict[str, str] = field(default_factory=dict)
    """Dotted field of the recipe -> the recipe whose run the field takes."""
    released: str | None = None


@dataclass(frozen=True)
class Stage:
    """A recipe of a chain."""

    recipe: str
    origin: Origin
    overrides: tuple[str, ...]
    config: RunConfig
    """The configuration of the recipe with these overrides."""


@cache
def origins() -> dict[str, Origin]:
    """Return the origins of all recipes that have one: recipe -> origin."""
    return {
        recipe: Origin(
            {key: value for key, value in facts.items() if key != _RELEASED}, facts.get(_RELEASED)
        )
        for recipe, facts in read_data("stages.yaml").items()
    }


def chain_of(
    recipes: Sequence[str],
    overrides: Sequence[str] = (),
    weights: Mapping[str, Path] | None = None,
) -> list[Stage]:
    """Return the stages that lead to `recipes`, every stage after its inputs.

    A stage takes the runs of its inputs, which lie in its own `runs_dir`.

    Args:
        weights: recipe -> file or run that stands for its run, so that it is no stage.
    Raises ConfigError, also for weights that no stage takes.
    """
    found: dict[str, Stage] = {}
    taken: set[str] = set()
    for recipe in recipes:
        _add(recipe, overrides, weights or {}, found, taken)
    for recipe in set(weights or {}) - taken:
        inputs = {source for stage in found.values() for source in stage.origin.inputs.values()}
        hint = did_you_mean(recipe, sorted(inputs), "these do")
        raise ConfigError(f"{recipe}: no stage of this row starts from it: {hint}")
    return list(found.values())


def _add(
    recipe: str,
    overrides: Sequence[str],
    weights: Mapping[str, Path],
    found: dict[str, Stage],
    taken: set[str],
) -> None:
    if recipe in found:
        return
    origin = origins().get(recipe, Origin())
    given = []
    for field_name, source in origin.inputs.items():
        if source in weights:
            taken.add(source)
            given.append(f"{field_name}={weights[source]}")
        else:
            _add(source, overrides, weights, found, taken)
            given.append(f"{field_name}={found[source].config.run_dir}")
    own = (*given, *overrides)
    found[recipe] = Stage(recipe, origin, own, load_config(recipe, own))
