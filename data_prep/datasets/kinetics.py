"""Kinetics-400/600/700: the official tables `label,youtube_id,time_start,time_end,split`.

`--annotations` is one such file or a directory of them. Videos may lie anywhere below the video
directory: `<id>_<start>_<end>` (with or without leading zeros) is a clip that is already cut, and
`<id>` is a whole download, from which the interval is cut.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from data_prep.annotation import Annotation, Listing, Problem
from data_prep.datasets.inputs import Inputs, read_lines, require_annotations, unique_columns
from data_prep.datasets.locate import VideoFiles
from data_prep.datasets.splits import known_split
from data_prep.datasets.validate import class_names, seconds
from data_prep.errors import DataError

_REQUIRED = ("youtube_id", "time_start", "time_end")


def read(inputs: Inputs) -> Listing:
    """Read the tables. Classes are the sorted labels, as in the published checkpoints."""
    root = require_annotations(inputs, "the official Kinetics CSV files")
    tables = sorted(root.glob("*.csv")) if root.is_dir() else [root]
    if not tables:
        raise DataError(f"--annotations {root}: no .csv file in this directory")
    files = VideoFiles(inputs.tree)
    annotations: list[Annotation] = []
    problems: list[Problem] = []
    labels: set[str] = set()
    for table in tables:
        for where, row in _rows(table):
            named = (row.get("split") or "").strip()
            split = known_split(named) if named else inputs.split
            label = (row.get("label") or "").strip() or None
            if split is None:
                detail = f"split {named!r} is none of train, val and test"
                problems.append(Problem(where, "malformed", detail))
                continue
            if label is not None:
                labels.add(label)
            try:
                annotations.append(_annotation(row, label, split, files, where))
            except ValueError as error:
                problems.append(Problem(where, "malformed", str(error), split=split))
    return Listing(annotations, problems, class_names(labels, root))


def _rows(table: Path) -> Iterator[tuple[str, dict[str, str | None]]]:
    try:
        yield from _named_rows(table, csv.DictReader(read_lines(table)))
    except csv.Error as error:
        raise DataError(f"{table}: not a CSV file ({error})") from None


def _named_rows(
    table: Path, reader: csv.DictReader[str]
) -> Iterator[tuple[str, dict[str, str | None]]]:
    absent = [name for name in _REQUIRED if name not in (reader.fieldnames or ())]
    if absent:
        raise DataError(f"{table}:1: column {absent[0]!r} is missing; found {reader.fieldnames}")
    unique_columns(table, 1, reader.fieldnames or ())
    for row in reader:
        yield f"{table}:{reader.line_num}", row


def _annotation(
    row: dict[str, str | None], label: str | None, split: str, files: VideoFiles, where: str
) -> Annotation:
    identity, start, end = (row[name] for name in _REQUIRED)
    if not identity or not start or not end or None in row:
        raise ValueError(f"not one cell per column: {list(row.values())}")
    start_s, end_s = seconds(start), seconds(end)
    if start_s >= end_s:
        raise ValueError(f"time_start {start} is not before time_end {end}")
    first, last = int(start_s), int(end_s)
    names = (f"{identity}_{first:06d}_{last:06d}", f"{identity}_{first}_{last}")
    cut = files.find(*names, directory=label)
    if cut is not None:
        return Annotation(cut, label, split, where=where)
    whole = files.find(identity, directory=label)
    if whole is not None:
        return Annotation(whole, label, split, start_s, end_s, where)
    # The video is absent, so its expected name goes into the list of missing files.
    return Annotation(f"{names[0]}.mp4", label, split, where=where)
