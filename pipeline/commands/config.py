"""`vmp config`: tables of a recipe's fields, from the declarations that also validate it."""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich import box
from rich.markup import escape
from rich.table import Table

from model.invalid import did_you_mean
from model.operational import OPERATIONAL
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.terminal import table_console

_PIPED_WIDTH = 140
_NAMES = {str: "text", Path: "path", type(None): "null", tuple: "list"}
_BOUNDS: dict[type, tuple[str, str]] = {
    Gt: (">", "gt"),
    Ge: (">=", "ge"),
    Lt: ("<", "lt"),
    Le: ("<=", "le"),
}


def print_config(
    config: RunConfig, section: str | None, origin: Callable[[str], str] | None = None
) -> None:
    """Print a table for each section, or for one section such as `optim` or `data.crop`.

    Args:
        origin: where the value at a dotted key comes from, as a column instead of the meaning.
    Raises ConfigError when there is no such section.
    """
    console = table_console(_PIPED_WIDTH)
    shown = [(name, node) for name, node in _sections(config) if _is_within(name, section)]
    if not shown:
        known = [name for name, _ in _sections(config) if name]
        raise ConfigError(f"no section '{section}': {did_you_mean(str(section), known)}")
    for name, node in shown:
        console.print(_table(name, node, origin))
    console.print("* may change when a run is resumed; a change of any other field needs a new run")


def _is_within(name: str, section: str | None) -> bool:
    return section is None or name == section or name.startswith(f"{section}.")


def _sections(node: BaseModel, path: str = "") -> Iterator[tuple[str, BaseModel]]:
    """Yield (dotted name, section), each section before those inside it."""
    yield path, node
    for name in type(node).model_fields:
        child = getattr(node, name)
        if isinstance(child, BaseModel):
            yield from _sections(child, f"{path}.{name}".lstrip("."))


def _table(name: str, node: BaseModel, origin: Callable[[str], str] | None) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{name or '(outermost)'}: {escape(_one_line(type(node).__doc__))}",
        title_justify="left",
    )
    for column in ("field", "type", "here", "default", "meaning" if origin is None else "from"):
        table.add_column(column, overflow="fold")
    for field, info in type(node).model_fields.items():
        value = getattr(node, field)
        if isinstance(value, BaseModel):
            continue
        mark = "*" if _is_operational(name, info) else ""
        default = "" if info.is_required() else _text(default_of(node, info))
        here = _text(value)
        last = (
            _one_line(info.description) if origin is None else origin(f"{name}.{field}".lstrip("."))
        )
        cells = [field + mark, type_text(info), here, default, last]
        cells = [escape(cell) for cell in cells]
        cells[2] = f"[bold]{cells[2]}[/bold]" if here != default else cells[2]
        table.add_row(*cells)
    return table


def default_of(node: BaseModel, info: FieldInfo) -> Any:
    """Return a field's default, which may depend on other fields of its section, `node`."""
    return info.get_default(call_default_factory=True, validated_data=dict(node))


def _is_operational(section: str, info: FieldInfo) -> bool:
    outer = RunConfig.model_fields.get(section.partition(".")[0])
    return OPERATIONAL in info.metadata or (outer is not None and OPERATIONAL in outer.metadata)


def type_text(info: FieldInfo) -> str:
    """Return a field's type in the terms of a recipe, with its bounds, such as `float, > 0`."""
    bounds = [
        f"{sign} {getattr(mark, attribute)}"
        for mark in info.metadata
        for kind, (sign, attribute) in _BOUNDS.items()
        if isinstance(mark, kind)
    ]
    return ", ".join([" | ".join(dict.fromkeys(_names(info.annotation))), *bounds])


def _names(annotation: Any) -> Iterator[str]:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _names(member)
    elif origin is Literal:
        yield from map(str, get_args(annotation))
    elif origin is Annotated:  # it occurs inside a union
        yield from _names(get_args(annotation)[0])
    else:
        kind = origin or annotation
        yield _NAMES.get(kind, getattr(kind, "__name__", str(kind)))


def _text(value: Any) -> str:
    """Format a value as one line of YAML."""
    plain = str(value) if isinstance(value, Path) else value
    return plain if isinstance(plain, str) else json.dumps(plain)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
