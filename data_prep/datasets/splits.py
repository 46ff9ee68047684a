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
_ALSO_SPLITS = frozenset({"dev", "eval", "evaluation", "holdout", "trn", "tst", "trainval"})
_FILLERS = ("clip", "clips", "data", "image", "images", "set", "split", "video", "videos")


def known_split(name: str) -> str | None:
    """Map `Train`, `VALIDATION`, `test_set` to train, val, test; other names give None."""
    return None if re.search(r"\d", name) else _SPELLINGS.get(_word(name))


def looks_like_split(name: str) -> bool:
    """Whether a name suggests a split, even an unclear one: `train2`, `dev`, `val_256`."""
    word = _word(name)
    return word in _SPELLINGS or word in _ALSO_SPLITS


def _word(name: str) -> str:
    """The one meaningful word of a name, in lower case, or else the whole name."""
    words = re.findall(r"[^\W\d_]+", name.casefold())
    telling = [word for word in words if word not in _FILLERS]
    if len(telling) != 1:
        return name.casefold()
    joined = {spelling + filler: spelling for spelling in _SPELLINGS for filler in _FILLERS}
    word: str = telling[0]
    return joined.get(word, word)
