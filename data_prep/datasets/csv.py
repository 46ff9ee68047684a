"""CSV tables with columns `path` and `label`, optionally `split`, and `start`, `end` in s."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from data_prep.annotation import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Annotation, Listing, Problem
from data_prep.datasets.inputs import Inputs, read_lines, require_annotations, unique_columns
from data_prep.datasets.validate import class_names, seconds
from data_prep.errors import DataError

# Other tables use these names. Ignoring such a column would change the training data.
_MEANT = {
    "start_time": "start",
    "time_start": "start",
    "start_s": "start",
    "begin": "start",
    "end_time": "end",
    "time_end": "end",
    "end_s": "end",
    "stop": "end",
    "subset": "split",
    "partition": "split",
}


def read(inputs: Inputs) -> Listing:
    """Read the table. Classes are the sorted labels; integer labels are class numbers."""
    table = require_annotations(inputs, "a CSV file with the columns path and label")
    annotations: list[Annotation] = []
    problems: list[Problem] = []
    rows = _rows(table)
    columns = _header(table, rows)
    for number, row in rows:
        where = f"{table}:{number}"
        try:
            annotations.append(_annotation(row, columns, inputs.split, where))
        except ValueError as error:
            problems.append(Problem(where, "malformed", str(error)))
    labels = {item.label for item in annotations if item.label is not None}
    return Listing(annotations, problems, class_names(labels, table))


def _rows(table: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of every row that is not blank."""
    reader = csv.reader(read_lines(table), skipinitialspace=True)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{table}:{reader.line_num}: not a CSV file ({error})") from None


def _header(table: Path, rows: Iterator[tuple[int, list[str]]]) -> Sequence[str]:
    try:
        number, first = next(rows)
    except StopIteration:
        raise DataError(f"{table}: empty; expected the columns path,label") from None
    names = [cell.strip().lower() for cell in first]
    if PurePath(names[0]).suffix in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
        raise DataError(f"{table}:{number}: no header; add a first line path,label")
    for required in ("path", "label"):
        if required not in names:
            raise DataError(f"{table}:{number}: column {required!r} is missing; found {names}")
    unique_columns(table, number, names)
    for name in names:
        if name in _MEANT:
            raise DataError(f"{table}:{number}: column {name!r}: call it {_MEANT[name]!r}")
    return names


def _annotation(row: list[str], columns: Sequence[str], split: str, where: str) -> Annotation:
    if len(row) != len(columns):
        raise ValueError(f"{len(row)} cells, the header has {len(columns)}")
    cells = {name: cell.strip() for name, cell in zip(columns, row, strict=True)}
    if not cells["path"]:
        raise ValueError("empty path")
    start, end = cells.get("start", ""), cells.get("end", "")
    return Annotation(
        path=cells["path"],
        label=cells["label"] or None,
        split=cells.get("split", "") or split,
        trim_start_s=seconds(start) if start else 0.0,
        trim_end_s=seconds(end) if end else None,
        where=where,
    )
