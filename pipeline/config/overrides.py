"""Overrides of the form `a.b=c`, which set dotted keys in a tree as read from YAML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from model.errors import brief
from model.invalid import variants
from pipeline.config.tree import RunConfig
from pipeline.config.yaml_text import parse_yaml
from pipeline.errors import ConfigError

_NULL = ("", "~", "null", "Null", "NULL")


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set dotted keys in a tree as read from YAML, in place.

    Raises ConfigError for an override that is malformed or whose parent is not a section.
    """
    for override in overrides:
        _apply(raw, override)


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {brief(override)} must have the form section.field=value")
    value = _value(key, text)
    *parents, leaf = key.split(".")
    node = raw
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {brief(override)}: '{parent}' is a value, not a section")
        node = child
    node[leaf] = value


def _value(key: str, text: str) -> Any:
    """Return the value of the text after `=`: the text itself for a text field, else its YAML."""
    kinds = _kinds_at(key.split("."))
    is_text = bool(kinds) and kinds <= {str, Path, NoneType}
    if is_text and not (NoneType in kinds and text in _NULL) and text[:1] not in ("'", '"'):
        return text  # YAML would read '1e5' as a number and 'a #b' as 'a'
    value = parse_yaml(text, f"override {brief(f'{key}={text}')}")
    return _number(value) if isinstance(value, str) and not is_text else value


def _kinds_at(path: Sequence[str]) -> set[Any]:
    """Return the types that the field at a dotted path accepts; empty without such a field."""
    nodes: list[Any] = [RunConfig]
    for part in path:
        nodes = [found for node in nodes for found in _types_of(node, part)]
    return {kind for node in nodes for kind in _members(node)}


def _types_of(node: Any, field: str) -> list[Any]:
    """Return the type of a field of a section; several where the field holds one of several."""
    fields = getattr(node, "model_fields", {})
    if field not in fields:
        return []
    return list(variants(node, field).values()) or [fields[field].annotation]


def _members(kind: Any) -> Sequence[Any]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _number(text: str) -> str | float:
    # YAML 1.1 reads 1e-3 as a string because it has no dot.
    try:
        return float(text)
    except ValueError:
        return text
