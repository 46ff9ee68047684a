"""Turns annotations on disk into one checked plan per split."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace

from data_prep.annotation import HARMLESS, Problem
from data_prep.datasets import read_listing
from data_prep.datasets.holdout import with_validation_split
from data_prep.datasets.inputs import Inputs
from data_prep.datasets.presence import present
from data_prep.durable import publish
from data_prep.errors import DataError
from data_prep.options import ShardConfig, absolute_out
from data_prep.plan import PlannedShard, plan_shards
from data_prep.sealed.seal import shaping
from data_prep.video.picture import PICTURE_VERSION
from data_prep.workdir import SplitPlan, Workdir, fingerprint

_REFUSED_NAME = "refused.jsonl"

PlannedSplit = tuple[SplitPlan, list[PlannedShard], list[Problem]]


def plan_inputs(
    config: ShardConfig, workdir: Workdir, known: Mapping[str, SplitPlan]
) -> list[PlannedSplit]:
    """Plan the splits that the annotations name; `known` holds the plans of earlier calls.

    Raises `DataError` when too many inputs are absent or malformed.
    """
    inputs = Inputs(config.videos, config.annotations, config.split, config.fold)
    listing = present(read_listing(config.format, inputs), inputs)
    if config.val_fraction:
        listing = with_validation_split(listing, config.val_fraction)
    splits = {item.split for item in listing.annotations}
    others = [plan for plan in known.values() if plan.split not in splits]
    if others:
        # The splits that were sharded first determine the numbers of the classes.
        listing = replace(listing, classes=others[0].classes)
    dataset = config.dataset or next(
        (plan.dataset for plan in known.values()), config.videos.absolute().name
    )
    plan = plan_shards(
        listing,
        dataset=dataset,
        clips_per_shard=config.clips_per_shard,
        taken=frozenset().union(*(workdir.keys(other) for other in others)),
    )
    total = sum(len(shard.clips) for shard in plan.shards) + sum(
        problem.code not in HARMLESS for problem in plan.problems
    )
    _refuse_too_many(config, workdir, plan.problems, total)
    return list(_per_split(config, dataset, listing.classes, plan.shards, plan.problems))


def _refuse_too_many(
    config: ShardConfig, workdir: Workdir, problems: list[Problem], total: int
) -> None:
    serious = [problem for problem in problems if problem.code not in HARMLESS]
    if len(serious) <= config.max_missing * total and len(serious) < total:
        return
    listed = workdir.root / _REFUSED_NAME
    publish(listed, "".join(json.dumps(asdict(item)) + "\n" for item in serious).encode())
    counts = Counter(problem.code for problem in serious)
    reasons = ", ".join(f"{count} {code}" for code, count in counts.most_common())
    first = serious[0]
    raise DataError(
        f"{config.annotations or config.videos}: {len(serious)} of {total} clips cannot be used "
        f"({reasons}), more than --max-missing {config.max_missing:g}; first: {first.where}: "
        f"{first.code}, {first.detail}; all in {listed}"
    )


def _per_split(
    config: ShardConfig,
    dataset: str,
    classes: tuple[str, ...],
    shards: list[PlannedShard],
    problems: list[Problem],
) -> Iterator[PlannedSplit]:
    splits = sorted({shard.split for shard in shards})
    for split in splits:
        ours = [shard for shard in shards if shard.split == split]
        # Lines that are too broken to name a split are listed under the first split.
        left_out = [
            problem
            for problem in problems
            if problem.split == split or (split == splits[0] and problem.split not in splits)
        ]
        plan = SplitPlan(
            split=split,
            dataset=dataset,
            classes=classes,
            format=config.format,
            fold=config.fold,
            encode=config.encode,
            clips_per_shard=config.clips_per_shard,
            videos=config.videos.absolute(),
            out=absolute_out(config.out),
            caps=config.caps,
            max_missing=config.max_missing,
            picture_version=PICTURE_VERSION,
            num_shards=len(ours),
            num_clips=sum(len(shard.clips) for shard in ours),
            fingerprint="",
        )
        identity = {"dataset": dataset, "classes": classes, **shaping(plan)}
        yield plan.model_copy(update={"fingerprint": fingerprint(ours, identity)}), ours, left_out
