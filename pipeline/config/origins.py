"""Where each value of a configuration comes from: a file, the command line, a preset, a default."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.auto import AUTO
from pipeline.config.load import PRESET
from pipeline.config.overrides import apply_overrides
from pipeline.config.recipe import Layer, merge, origin, read_layers, value_at

COMMAND_LINE = "command line"
DEFAULT = "default"


def value_origins(recipe: str | Path, overrides: Sequence[str] = ()) -> Callable[[str], str]:
    """Return a function from a dotted key to the origin of its value.

    Raises ConfigError for a recipe that cannot be read and for a malformed override.
    """
    given: dict[str, Any] = {}
    apply_overrides(given, overrides)
    layers = [*read_layers(recipe), Layer(COMMAND_LINE, given, None)]
    tree = merge(layers)
    model = tree.get("model")
    preset = model.get(PRESET) if isinstance(model, Mapping) else None

    def of(key: str) -> str:
        stated = origin(layers, key)
        if stated is not None:
            return f"{stated}, {AUTO}" if value_at(tree, key) == AUTO else stated
        return f"preset {preset}" if preset and key.startswith("model.") else DEFAULT

    return of
