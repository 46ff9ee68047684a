"""Assigns clips to shards: a pure function of the listing and the shard size."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass

from data_prep.annotation import Annotation, Listing, Problem

UNLABELLED_SPLIT = "test"
"""The one split whose clips may lack labels."""


@dataclass(frozen=True, slots=True)
class PlannedClip:
    key: str
    path: str
    label: int
    """Index of the class; -1 = unlabelled."""
    trim_start_s: float
    trim_end_s: float | None
    where: str


@dataclass(frozen=True, slots=True)
class PlannedShard:
    name: str
    """The file name of the tar."""
    split: str
    clips: tuple[PlannedClip, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    shards: list[PlannedShard]
    problems: list[Problem]

    @property
    def num_clips(self) -> int:
        return sum(len(shard.clips) for shard in self.shards)


def clip_key(dataset: str, path: str, trim_start_s: float, trim_end_s: float | None) -> str:
    """The key of a clip: 32 hex digits, without dots because WebDataset splits names at a dot."""
    identity = json.dumps([dataset, path, trim_start_s, trim_end_s])
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def plan_shards(
    listing: Listing, *, dataset: str, clips_per_shard: int, taken: frozenset[str] = frozenset()
) -> Plan:
    """Spread the clips of every split over shards of nearly equal size.

    Clips are ordered by their keys, which are hashes, so that every shard mixes the classes.
    `taken` holds the keys of other splits. Of several rows that name one clip the first is kept;
    if their labels differ, none is.
    """
    numbers = {name: number for number, name in enumerate(listing.classes)}
    problems = list(listing.problems)
    kept: dict[str, tuple[Annotation, PlannedClip]] = {}
    conflicts: set[str] = set()
    for item in listing.annotations:
        if item.label is None and item.split != UNLABELLED_SPLIT:
            problems.append(_problem(item, "no_label", "only the split test may lack labels"))
            continue
        if item.label is not None and item.label not in numbers:
            problems.append(_problem(item, "unknown_class", f"label {item.label!r}"))
            continue
        key = clip_key(dataset, item.path, item.trim_start_s, item.trim_end_s)
        if key in kept or key in taken:
            problem = _repeat(item, kept[key][0] if key in kept else None)
            problems.append(problem)
            if problem.code == "conflicting_labels":
                conflicts.add(key)
            continue
        kept[key] = (item, _planned(key, item, numbers))
    for key in sorted(conflicts):
        first, _ = kept.pop(key)
        problems.append(_problem(first, "conflicting_labels", "listed again with another label"))
    by_split: dict[str, list[PlannedClip]] = {}
    for key in sorted(kept):
        item, clip = kept[key]
        by_split.setdefault(item.split, []).append(clip)
    shards = [
        PlannedShard(f"{split}-{number:06d}.tar", split, tuple(chunk))
        for split in sorted(by_split)
        for number, chunk in enumerate(_chunks(by_split[split], clips_per_shard))
    ]
    return Plan(shards, problems)


def _planned(key: str, item: Annotation, numbers: dict[str, int]) -> PlannedClip:
    label = -1 if item.label is None else numbers[item.label]
    return PlannedClip(key, item.path, label, item.trim_start_s, item.trim_end_s, item.where)


def _repeat(item: Annotation, first: Annotation | None) -> Problem:
    if first is None or first.split != item.split:
        other = first.split if first else "a split that is sharded already"
        return _problem(item, "in_other_split", f"also in {other}")
    if first.label != item.label:
        detail = f"{item.label!r} here, {first.label!r} at {first.where}"
        return _problem(item, "conflicting_labels", detail)
    return _problem(item, "duplicate_row", f"first at {first.where}")


def _problem(item: Annotation, code: str, detail: str) -> Problem:
    return Problem(item.where, code, detail, item.path, item.split)


def _chunks(clips: list[PlannedClip], size: int) -> Iterable[list[PlannedClip]]:
    count = -(-len(clips) // size)
    bounds = [len(clips) * number // count for number in range(count + 1)]
    return (clips[start:stop] for start, stop in itertools.pairwise(bounds))
