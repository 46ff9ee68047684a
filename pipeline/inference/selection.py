"""Which evaluations may choose a run's best checkpoint: those on a validation split."""

from __future__ import annotations

import re

from data_prep.schema import Manifest

_TEST = re.compile(r"(^|[^a-z])(test|tst)", re.IGNORECASE)
# These data sets have no validation list; sharding calls their official test list `val`.
_TEST_LIST_AS_VAL = ("ucf101", "hmdb51")


def is_test_split(manifest: Manifest, split: str) -> bool:
    """Return whether `split` is test data, on which nothing may be chosen, only reported."""
    if split == "val" and manifest.settings.get("format") in _TEST_LIST_AS_VAL:
        return True
    return _TEST.search(split) is not None
