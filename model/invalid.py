"""What is wrong with input, in one line: pydantic's first error, or the closest known name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from model.errors import brief


def first_problem(
    error: ValidationError, of: type[BaseModel] | None = None, under: str = "", whole: str = ""
) -> str:
    """`section.field: reason (got value)` for the first error of validating a model.

    Args:
        of: the model, which tells fields from the types of a union; None when no field is a union.
        under: dotted key of that model, where it is a section of a larger one.
        whole: what stands for the field where the input itself is at fault, such as broken JSON.
    """
    problem, *others = error.errors()
    path = field_path(of, problem["loc"])
    # pydantic reports a field of several types once per type.
    again = [other["msg"] for other in others if field_path(of, other["loc"]) == path]
    reasons = dict.fromkeys(_plain(msg) for msg in [problem["msg"], *(again if path else [])])
    names = [str(part) if str(part).isidentifier() else brief(part) for part in path]
    where = ".".join([*([under] if under else []), *names]) or whole
    said = "; or ".join(reasons)
    return f"{where}: {said}{_given(problem)}" if where else f"{said}{_given(problem)}"


def field_path(of: type[BaseModel] | None, loc: Sequence[int | str]) -> tuple[int | str, ...]:
    """The part of a pydantic location that names fields and positions, without tags of types."""
    if of is None:
        return tuple(loc)
    path: list[int | str] = []
    node: type[BaseModel] | None = of
    tags: dict[str, type[BaseModel]] = {}
    for part in loc:
        if part in tags:
            node, tags = tags[str(part)], {}
        elif isinstance(part, int):
            path.append(part)
        elif node is not None:
            path.append(part)
            tags = variants(node, part)
            node = section_type(node, part)
    return tuple(path)


def section_type(node: type[BaseModel], field: str) -> type[BaseModel] | None:
    """The model that a field holds; None when the field is a value, or unknown."""
    info = node.model_fields.get(field)
    annotation = info.annotation if info is not None else None
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def variants(node: type[BaseModel], field: str) -> dict[str, type[BaseModel]]:
    """The models that a field holds one of, by the tag that tells them apart; else empty."""
    info = node.model_fields.get(field)
    if info is None or not isinstance(info.discriminator, str):
        return {}
    return {
        tag: model
        for model in get_args(info.annotation)
        for tag in get_args(model.model_fields[info.discriminator].annotation)
    }


def did_you_mean(name: str, known: Iterable[str], what: str = "known") -> str:
    """`did you mean 'depth'?`, or `known: a, b, c` when nothing is close."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"{what}: {', '.join(names)}"


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ").removeprefix("Assertion failed, ")


def _given(problem: ErrorDetails) -> str:
    value: Any = problem["input"]
    # A validator of a whole section names the rejected value in its own message.
    if problem["type"] == "missing" or isinstance(value, Mapping | BaseModel):
        return ""
    return f" (got {brief(value)})"
