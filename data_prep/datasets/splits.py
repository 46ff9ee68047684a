"""Recognises the names of splits in their usual spellings."""

from __future__ import annotations

import re

_SPELLINGS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_ALSO_SPLITS = frozenset(
    {
        "annotation",
        "annotations",
        "dev",
        "eval",
        "evaluation",
        "holdout",
        "trainval",
        "trn",
        "tst",
    }
)
# A class may be called `clip test`; a public layout has `videos_train` and `rawframes_val`.
_BEFORE = ("clips", "data", "frames", "images", "rawframes", "videos")
_AFTER = (*_BEFORE, "clip", "image", "list", "set", "split", "video")
_NAME = re.compile(
    rf"(?:(?:{'|'.join(_BEFORE)})[\W_]+)?"
    rf"(?P<split>{'|'.join([*_SPELLINGS, *_ALSO_SPLITS])})"
    rf"(?:[\W\d_]|{'|'.join(_AFTER)})*"
)


def known_split(name: str) -> str | None:
    """Map `Train`, `VALIDATION`, `test_set` to train, val, test; other names give None."""
    return None if re.search(r"\d", name) else _SPELLINGS.get(_split_in(name))


def looks_like_split(name: str) -> bool:
    """Whether a name suggests a split, even an unclear one: `train2`, `trainlist01`, `dev`."""
    return bool(_split_in(name))


def _split_in(name: str) -> str:
    """The word for a split that a name consists of, beside numbers and words for data, or ""."""
    found = _NAME.fullmatch(name.casefold())
    return found["split"] if found else ""
