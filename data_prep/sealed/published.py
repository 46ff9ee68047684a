"""Compares a Kinetics-400 directory with the copies on which published accuracies were measured.

Videos vanish from YouTube, so every copy lacks another part of the official list, and accuracies
of different copies are not quite comparable.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from data_prep.annotation import HARMLESS
from data_prep.sealed.survey import Survey

_CLASSES = 400
_OFFICIAL_TRAIN = 246_535
"""Training videos of the official list."""
_COMMON_TRAIN = 241_258
"""Training videos of the copy that most published results use."""
_NAMES = ("kinetics", "k400")


@dataclass(frozen=True, slots=True)
class Comparison:
    """The training split beside the official list and the common copy."""

    rows: list[tuple[str, int, str]]
    """(what, number of training videos, share of the official list)."""
    difference: int
    """Videos that this directory has beyond the common copy; negative = it has fewer."""
    lost: list[tuple[str, int]]
    """(reason, number) of the videos that were listed but are not in the shards."""


def compare_with_published(found: Survey) -> Comparison | None:
    """Compare the training split; None for what is not Kinetics-400, or has no such split."""
    manifest = found.manifest
    named = any(name in manifest.dataset.casefold() for name in _NAMES)
    is_kinetics = manifest.settings.get("format") == "kinetics" or named
    if len(manifest.classes) != _CLASSES or not is_kinetics or "train" not in manifest.splits:
        return None
    kept = manifest.splits["train"]
    lost = Counter(
        line["code"]
        for line in found.quarantine
        if line.get("split") == "train" and line["code"] not in HARMLESS
    )
    counts = [
        ("official list", _OFFICIAL_TRAIN),
        ("common copy", _COMMON_TRAIN),
        ("listed here", kept + lost.total()),
        ("in these shards", kept),
    ]
    rows = [(what, count, f"{100 * count / _OFFICIAL_TRAIN:.1f} %") for what, count in counts]
    return Comparison(rows, kept - _COMMON_TRAIN, lost.most_common())
