"""The videos that a row needs, compared with those that shards hold."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config import RunConfig
from pipeline.reproduce.rows import DatasetFacts


def dataset_of(config: RunConfig) -> str:
    """Return the name of a recipe's data set, the last part of its shard directory."""
    return str(config.data.train).rstrip("/").rpartition("/")[2]


def compare(
    facts: DatasetFacts, splits: Mapping[str, int], num_classes: int, left_out: int
) -> list[str]:
    """Return a line per split: what the shards hold of the published lists.

    Args:
        splits: videos per split in the shards.
        num_classes: classes of the shards.
        left_out: inputs that sharding put into quarantine.
    """
    lines = [_line(split, splits.get(split, 0), count) for split, count in facts.splits.items()]
    lines += [
        f"{split}: {count:,} videos, and the published lists have no such split"
        for split, count in splits.items()
        if split not in facts.splits
    ]
    if num_classes != facts.classes:
        lines.append(f"classes: {num_classes}, where the data set has {facts.classes}")
    if left_out:
        lines.append(f"left out by sharding: {left_out:,} inputs, see quarantine.jsonl")
    return lines


def _line(split: str, here: int, listed: int) -> str:
    missing, extra = max(0, listed - here), max(0, here - listed)
    differs = f"{missing:,} missing" if missing else f"{extra:,} extra" if extra else "complete"
    return f"{split}: {here:,} of {listed:,} videos, {differs}"
