"""Reads annotations: one module per format, chosen by `read_listing`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

from data_prep.annotation import SPLIT_NAME, Listing, Problem
from data_prep.datasets import csv, folder, hmdb51, kinetics, ssv2, ucf101
from data_prep.datasets.inputs import Inputs
from data_prep.datasets.validate import validated
from data_prep.errors import DataError

Format = Literal["kinetics", "ssv2", "ucf101", "hmdb51", "folder", "csv"]


_READERS: dict[str, Callable[[Inputs], Listing]] = {
    "kinetics": kinetics.read,
    "ssv2": ssv2.read,
    "ucf101": ucf101.read,
    "hmdb51": hmdb51.read,
    "folder": folder.read,
    "csv": csv.read,
}


def read_listing(name: str, inputs: Inputs) -> Listing:
    """Read and validate the annotations of a data set; impossible clips become problems.

    Raises `DataError` for an unknown format, an absent directory or an empty listing.
    """
    if name not in _READERS:
        raise DataError(f"--format {name}: unknown; one of {', '.join(get_args(Format))}")
    if not inputs.videos.is_dir():
        raise DataError(f"--videos {inputs.videos}: no such directory")
    if not SPLIT_NAME.fullmatch(inputs.split):
        raise DataError(f"--split {inputs.split}: may only hold letters, digits, - and _")
    listing = validated(_READERS[name](inputs), inputs.videos)
    if not listing.annotations:
        source = inputs.annotations or inputs.videos
        raise DataError(f"{source}: names no video{_first(listing.problems)}{_tars(inputs)}")
    return listing


def _first(problems: Sequence[Problem]) -> str:
    if not problems:
        return ""
    first = problems[0]
    return f"; {len(problems)} lines cannot be used; the first is {first.where}: {first.detail}"


def _tars(inputs: Inputs) -> str:
    if not any(path.endswith(".tar") for path in inputs.tree.files):
        return ""
    return f"; {inputs.videos} holds tars, for which there is `vmp data adopt`"
