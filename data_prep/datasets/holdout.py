"""Makes a validation split for data sets that come without one."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from data_prep.annotation import Annotation, Listing
from data_prep.datasets.validate import composed
from data_prep.errors import DataError


def with_validation_split(listing: Listing, fraction: float) -> Listing:
    """Hold out `fraction` of the training videos as `val`, chosen by a hash of their paths.

    All clips of a video share a split, which does not change when other videos come or go. Raises
    `DataError` when there already is a validation split, or when one of the two would be empty.
    """
    splits = {item.split for item in listing.annotations}
    if "val" in splits or "train" not in splits:
        found = ", ".join(sorted(splits)) or "none"
        raise DataError(
            f"--val-fraction {fraction:g}: needs a split train and no split val; found {found}"
        )
    annotations = [
        replace(item, split="val") if _is_held_out(item, fraction) else item
        for item in listing.annotations
    ]
    held_out = sum(item.split == "val" for item in annotations)
    if not held_out or all(item.split != "train" for item in annotations):
        raise DataError(
            f"--val-fraction {fraction:g}: would hold out {held_out} of {len(annotations)} clips; "
            "choose another share"
        )
    return replace(listing, annotations=annotations)


def _is_held_out(item: Annotation, fraction: float) -> bool:
    return item.split == "train" and _place(item.path) < fraction


def _place(path: str) -> float:
    """A number from 0 to 1 that depends on the path alone and is spread evenly over paths."""
    digest = hashlib.sha256(composed(path).encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
