"""A table: columns `path` and `label`, optionally `split`, `start` and `end` in seconds."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from data_prep.annotation import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Annotation, Listing, Problem
from data_prep.datasets.inputs import Inputs, read_lines, require_annotations
from data_prep.errors import DataError


def read(inputs: Inputs) -> Listing:
    """Classes are the sorted labels; numbers sort as numbers."""
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
    numeric = all(label.isdecimal() for label in labels)
    classes = tuple(sorted(labels, key=int if numeric else None))
    return Listing(annotations, problems, classes)


def _rows(table: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of every row that is not blank."""
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
        trim_start_s=float(start) if start else 0.0,
        trim_end_s=float(end) if end else None,
        where=where,
    )
