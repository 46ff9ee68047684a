"""Something-Something v2: `labels.json` and the train, validation and test lists beside it.

Videos are named `<id>.webm` (or with another suffix) anywhere below the video directory. Test
clips have no labels unless `test-answers.csv` is present.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.annotation import Annotation, Listing, Problem
from data_prep.datasets.inputs import Inputs, read_lines, require_annotations
from data_prep.datasets.locate import VideoFiles
from data_prep.errors import DataError

_PREFIXES = ("", "something-something-v2-")
_LISTS = {"train.json": "train", "validation.json": "val", "test.json": "test"}


def read(inputs: Inputs) -> Listing:
    """Read the lists. Classes are the templates of `labels.json`, in its numbering."""
    root = require_annotations(inputs, "the directory with labels.json and train.json")
    classes = _classes(_file(root, "labels.json"))
    answers = _answers(_file(root, "test-answers.csv", optional=True))
    files = VideoFiles(inputs.tree)
    annotations: list[Annotation] = []
    problems: list[Problem] = []
    for name, split in _LISTS.items():
        path = _file(root, name, optional=True)
        for where, item in _items(path) if path else ():
            try:
                annotations.append(_annotation(item, split, answers, files, where))
            except ValueError as error:
                problems.append(Problem(where, "malformed", str(error), split=split))
    return Listing(annotations, problems, classes)


def _file(root: Path, name: str, *, optional: bool = False) -> Path | None:
    for prefix in _PREFIXES:
        if (root / f"{prefix}{name}").is_file():
            return root / f"{prefix}{name}"
    if optional:
        return None
    raise DataError(f"--annotations {root}: {name} is missing; it comes with the data set")


def _classes(path: Path | None) -> tuple[str, ...]:
    assert path is not None
    content = _load(path)
    try:
        numbers = {name: int(number) for name, number in content.items()}
    except (AttributeError, TypeError, ValueError):
        raise DataError(f'{path}: expected {{"class name": "number", ...}}') from None
    if sorted(numbers.values()) != list(range(len(numbers))):
        raise DataError(f"{path}: the numbers are not 0 to {len(numbers) - 1}")
    return tuple(sorted(numbers, key=numbers.__getitem__))


def _load(path: Path) -> Any:
    try:
        return json.loads("".join(read_lines(path)), object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        raise ValueError(f"{twice[0]!r} is there twice")
    return content


def _items(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the elements of a JSON list with their lines, which `json.load` does not give."""
    text = "".join(read_lines(path))
    decoder = json.JSONDecoder()
    position = _skip(text, 0, " \t\r\n")
    if text[position : position + 1] != "[":
        raise DataError(f"{path}:1: expected a JSON list")
    line, counted = 1, 0
    position = _skip(text, position + 1, " \t\r\n,")
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            item, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
        except (ValueError, RecursionError) as error:  # e.g. 5000 digits, or deeply nested lists
            raise DataError(f"{path}:{line}: not JSON that can be read ({error})") from None
        yield f"{path}:{line}", item
        position = _skip(text, position, " \t\r\n,")


def _skip(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position


def _answers(path: Path | None) -> dict[str, str]:
    """Map ids to class names, from lines `id;class`."""
    if path is None:
        return {}
    answers: dict[str, str] = {}
    try:
        rows = list(csv.reader(read_lines(path), delimiter=";"))
    except csv.Error as error:
        raise DataError(f"{path}: not a table of id;class ({error})") from None
    for row in rows:
        if len(row) == 2 and answers.setdefault(row[0], row[1]) != row[1]:
            raise DataError(f"{path}: {row[0]} has two answers, {answers[row[0]]!r} and {row[1]!r}")
    return answers


def _annotation(
    item: Any, split: str, answers: dict[str, str], files: VideoFiles, where: str
) -> Annotation:
    if not isinstance(item, dict) or not item.get("id"):
        raise ValueError(f"no id in {item!r}")
    identity = str(item["id"])
    label: str | None
    if split == "test":
        label = answers.get(identity)
    elif "template" in item:
        # labels.json spells "Pushing [something] from left to right" without brackets.
        label = str(item["template"]).replace("[", "").replace("]", "")
    else:
        raise ValueError(f"no template for {identity}")
    path = files.find(identity) or f"{identity}.webm"
    return Annotation(path, label, split, where=where)
