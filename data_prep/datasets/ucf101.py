"""UCF101: `classInd.txt`, `trainlist0F.txt` and `testlist0F.txt` of one official division.

The test list becomes the split `val`. Paths are `<class>/<file>.avi` below the video directory.
"""

from __future__ import annotations

from pathlib import Path

from data_prep.annotation import Annotation, Listing, Problem
from data_prep.datasets.inputs import Inputs, read_lines, require_annotations
from data_prep.errors import DataError


def read(inputs: Inputs) -> Listing:
    """Read one division. Classes are numbered from 0 in the order of `classInd.txt`."""
    root = require_annotations(inputs, "the directory with classInd.txt and trainlist01.txt")
    classes = _classes(root / "classInd.txt")
    annotations: list[Annotation] = []
    problems: list[Problem] = []
    for name, split in (("trainlist", "train"), ("testlist", "val")):
        path = root / f"{name}{inputs.fold:02d}.txt"
        if not path.is_file():
            raise DataError(f"--annotations {root}: {path.name} is missing")
        for number, line in enumerate(read_lines(path), 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                annotations.append(_annotation(line, classes, split, where))
            except ValueError as error:
                problems.append(Problem(where, "malformed", str(error), split=split))
    return Listing(annotations, problems, classes)


def _classes(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise DataError(f"--annotations {path.parent}: classInd.txt is missing")
    names: dict[int, str] = {}
    for line_number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        number, _, name = line.strip().partition(" ")
        if not number.isdecimal() or not name:
            raise DataError(f"{path}:{line_number}: expected '<number> <class>', found {line!r}")
        if int(number) in names or name.strip() in names.values():
            raise DataError(f"{path}:{line_number}: number or class is there twice: {line!r}")
        names[int(number)] = name.strip()
    if sorted(names) != list(range(1, len(names) + 1)):
        raise DataError(f"{path}: the numbers are not 1 to {len(names)}")
    return tuple(names[number] for number in sorted(names))


def _annotation(line: str, classes: tuple[str, ...], split: str, where: str) -> Annotation:
    words = line.split()
    path = words[0]
    label, slash, _ = path.partition("/")
    if not slash:
        raise ValueError(f"expected <class>/<file>, found {line.strip()!r}")
    if len(words) > 1:
        number = int(words[1]) - 1
        if not 0 <= number < len(classes) or classes[number] != label:
            raise ValueError(f"class number {words[1]} is not that of {label!r}")
    return Annotation(path, label, split, where=where)
