"""`a.b=c`: dotted keys that are set in a tree as read from YAML."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from model.invalid import section_type
from pipeline.config.tree import RunConfig
from pipeline.errors import ConfigError

_NOTHING = ("", "null", "~")


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set dotted keys in a tree as read from YAML, in place.

    The text of a field that holds a string or a path is taken as it stands: `name=1e5` is a name.
    Any other is read as YAML. Raises ConfigError.
    """
    for override in overrides:
        _apply(raw, override)


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override '{override}' must have the form section.field=value")
    value = _parse(override, text, set(_types_at(key)))
    *parents, leaf = key.split(".")
    node = raw
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override '{override}': '{parent}' is a value, not a section")
        node = child
    node[leaf] = value


def _parse(override: str, text: str, accepted: set[type]) -> Any:
    if accepted and accepted <= {str, Path, type(None)}:
        return None if type(None) in accepted and text in _NOTHING else text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override '{override}': the value is not YAML") from error
    return _number(value) if isinstance(value, str) else value


def _types_at(key: str) -> Iterator[type]:
    """The types that the field of a dotted key may hold; none for a key that is no field."""
    *parents, leaf = key.split(".")
    node: type[BaseModel] | None = RunConfig
    for parent in parents:
        node = section_type(node, parent) if node is not None else None
    if node is not None and leaf in node.model_fields:
        yield from _members(node.model_fields[leaf].annotation)


def _members(annotation: Any) -> Iterator[type]:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    elif origin is Literal:
        yield from map(type, get_args(annotation))
    elif origin is Annotated:  # inside a union
        yield from _members(get_args(annotation)[0])
    else:
        yield origin or annotation


def _number(text: str) -> str | float:
    # YAML 1.1 takes 1e-3 for a string because it has no dot.
    try:
        return float(text)
    except ValueError:
        return text
