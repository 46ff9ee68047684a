"""`a.b=c`: dotted keys that are set in a tree as read from YAML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from pipeline.errors import ConfigError


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set dotted keys in a tree as read from YAML, in place."""
    for override in overrides:
        _apply(raw, override)


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
