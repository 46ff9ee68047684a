"""Reading recipes: a YAML file states its difference to one other recipe, its `base`.

A recipe and its bases are layers. Sections are merged key by key, and the recipe's own values win.
The result has no `base`, so configurations that runs store are whole.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from model.errors import brief
from model.invalid import did_you_mean
from pipeline.config.yaml_text import parse_yaml
from pipeline.errors import ConfigError

BASE = "base"
"""Key of a recipe that names the recipe from which it inherits; only recipes contain it."""

ABSENT = object()
"""What `value_at` returns where a tree has nothing; null is a value."""
_SUFFIX = ".yaml"
_BASES = "bases"
"""Folder of the recipes that only others inherit from, since they name no run."""


@dataclass(frozen=True)
class Layer:
    """The values that one file states."""

    source: str
    """The shipped recipe's name, or the path of the file."""
    values: dict[str, Any]
    folder: Path | None
    """The folder to which the path of its base is relative; None for a shipped recipe."""

    @property
    def base(self) -> str | None:
        return self.values.get(BASE)

    @property
    def own(self) -> dict[str, Any]:
        """The values without the name of the base."""
        return {key: value for key, value in self.values.items() if key != BASE}


def shipped_recipes() -> list[str]:
    """Return the names of the recipes in this package that can be trained, sorted."""
    return sorted(name for name, file in _shipped().items() if file.parent != _BASES)


def read_layers(recipe: str | Path) -> list[Layer]:
    """Read a recipe and its bases, the outermost base first and the recipe itself last.

    Raises ConfigError when a file is missing or not a mapping of sections, or when the bases form
    a circle.
    """
    layers = [_read(recipe, None)]
    seen = {_identity(layers[0])}
    while (base := layers[-1].base) is not None:
        layer = _read(base, layers[-1])
        layers.append(layer)
        if _identity(layer) in seen:
            circle = " -> ".join(layer.source for layer in layers)
            raise ConfigError(f"recipe {recipe}: its bases form a circle: {circle}")
        seen.add(_identity(layer))
    return layers[::-1]


def merge(layers: Sequence[Layer]) -> dict[str, Any]:
    """Return the tree that the layers give together; later layers win, section by section."""
    tree: dict[str, Any] = {}
    for layer in layers:
        tree = _merged(tree, layer.own)
    return tree


def origin(layers: Sequence[Layer], key: str) -> str | None:
    """Return the source of the value at a dotted key of the merged tree; None if none states it."""
    for layer in reversed(layers):
        if value_at(layer.own, key) is not ABSENT:
            return layer.source
    return None


def groups() -> dict[str, list[str]]:
    """Return the recipes of each folder, sorted; those in no folder are the group ""."""
    found: dict[str, list[str]] = {}
    for name in shipped_recipes():
        found.setdefault(_shipped()[name].parent, []).append(name)
    return found


def description(name: str) -> str:
    """Return the comment at the top of a shipped recipe or base as one line.

    The result is "" when the file has no comment or when there is no such file.
    """
    file = _shipped().get(name)
    text = "" if file is None else file.path.read_text(encoding="utf-8")
    comment = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.removeprefix("#").strip() for line in comment)


@dataclass(frozen=True)
class _File:
    parent: str
    path: Traversable


@functools.cache
def _shipped() -> dict[str, _File]:
    root = resources.files("pipeline") / "recipes"
    found: dict[str, _File] = {}
    for entry in root.iterdir():
        files = entry.iterdir() if entry.is_dir() else [entry]
        parent = entry.name if entry.is_dir() else ""
        for file in files:
            if file.name.endswith(_SUFFIX):
                found[file.name.removesuffix(_SUFFIX)] = _File(parent, file)
    return found


def _read(reference: str | Path, heir: Layer | None) -> Layer:
    """Read one file: the recipe itself, or with `heir` the base of that layer."""
    of = "" if heir is None else f"recipe {heir.source}: {BASE}: "
    path = Path(reference)
    if path.suffix in (_SUFFIX, ".yml"):
        path = path if heir is None or heir.folder is None else heir.folder / path
        text, source, folder = _text(path, f"{of}recipe {path}"), str(path), path.parent
    else:
        shipped = _shipped()
        known = shipped_recipes() if heir is None else sorted(shipped)
        if str(reference) not in known:
            hint = did_you_mean(str(reference), known, "shipped are")
            raise ConfigError(
                f"{of}unknown recipe '{reference}': {hint} (or give the path of a .yaml file)"
            )
        source, folder = str(reference), None
        text = shipped[source].path.read_text(encoding="utf-8")
    values = parse_yaml(text, f"{of}recipe {source}")
    if not isinstance(values, dict):
        raise ConfigError(f"{of}recipe {source}: must be a mapping of sections")
    base = values.get(BASE)
    if BASE in values and (not isinstance(base, str) or not base):
        raise ConfigError(
            f"{of}recipe {source}: {BASE}: must be the name of a recipe or the path of a .yaml "
            f"file (got {brief(base)})"
        )
    return Layer(source, values, folder)


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{what}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what}: not UTF-8 text ({error.reason})") from error
    except ValueError as error:  # the path has a null character
        raise ConfigError(f"{what}: cannot be read: {error}") from error


def _identity(layer: Layer) -> str | Path:
    return layer.source if layer.folder is None else Path(layer.source).resolve()


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    tree = dict(below)
    for key, value in above.items():
        under = tree.get(key)
        if isinstance(under, Mapping) and isinstance(value, Mapping):
            tree[key] = _merged(under, value)
        else:
            tree[key] = value
    return tree


def value_at(tree: Mapping[str, Any], key: str) -> Any:
    """Return the value at a dotted key, or ABSENT."""
    node: Any = tree
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return ABSENT
        node = node[part]
    return node
