"""Finds the class of a foreign sample in the files beside its video."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from data_prep.adopted.members import ForeignSample
from data_prep.datasets.validate import class_names, composed
from data_prep.errors import DataError, refused

_INTEGER = re.compile(r"-?[0-9]+")
_CAPTIONS = 100
"""More classes than this, with fewer than two samples each, are not classes."""


def read_classes(path: Path) -> tuple[str, ...]:
    """Read one class name per line, in the order of their numbers. Raises `DataError`."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise refused(error, f"--classes {path}: cannot be read") from None
    except UnicodeDecodeError as error:
        raise DataError(f"--classes {path}: not UTF-8 ({error.reason})") from None
    while lines and not lines[-1].strip():
        lines.pop()
    names = [composed(line) for line in lines]
    for number, name in enumerate(names, 1):
        if not name or names.index(name) != number - 1:
            what = "a class is listed twice" if name else "an empty line"
            raise DataError(f"--classes {path}:{number}: {what}; write one class name per line")
    if not names:
        raise DataError(f"--classes {path}: no class; write one name per line")
    return tuple(names)


def label_text(sample: ForeignSample, key: str | None) -> str:
    """Return the label as text. Raises `ValueError` with the reason when there is none."""
    if key is not None:
        return _json_field(sample.labels.get("json"), key)
    for suffix in ("cls", "txt"):
        if suffix in sample.labels:
            text = composed(_decoded(sample.labels[suffix], suffix))
            if not text or "\n" in text:
                raise ValueError(f"{suffix}: {'empty' if not text else 'more than one line'}")
            return text
    raise ValueError("neither a cls nor a txt member; --label-key names a field of its json")


def _decoded(content: bytes, suffix: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{suffix}: not UTF-8") from None


def _json_field(content: bytes | None, key: str) -> str:
    if content is None:
        raise ValueError("no json member")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("json: not JSON") from None
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise ValueError(f"json: no field {key!r}")
        value = value[part]
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"json: field {key!r} is neither text nor an integer")
    text = composed(str(value))
    if not text:
        raise ValueError(f"json: field {key!r} is empty")
    return text


def choose_classes(
    labels: list[str],
    *,
    given: tuple[str, ...] | None,
    known: tuple[str, ...] | None,
    source: Path,
) -> tuple[str, ...]:
    """Return the class names: those of the other splits, those given, or those that occur.

    Raises `DataError` when the given ones contradict the known ones, or when the labels look like
    captions.
    """
    if known is not None and given not in (None, known):
        raise DataError(
            "--classes: other names or another order than those of the splits that --out holds "
            "already; choose another --out"
        )
    if known or given:
        return known or given or ()
    distinct = set(labels)
    if len(distinct) > _CAPTIONS and 2 * len(distinct) > len(labels):
        raise DataError(
            f"{source}: {len(distinct)} different labels in {len(labels)} samples look like "
            "captions; name a field of the json with --label-key, or the classes with --classes"
        )
    return class_names(distinct, source)


def class_number(text: str, numbers: Mapping[str, int]) -> int | None:
    """Return the number of a class, given by its name or as an integer; None if it has none."""
    if text in numbers:
        return numbers[text]
    if _INTEGER.fullmatch(text) and len(text) < 10 and 0 <= int(text) < len(numbers):
        return int(text)
    return None
