"""Merges the records of finished shards into the index and the manifest that readers trust."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data_prep.annotation import HARMLESS
from data_prep.durable import publish
from data_prep.errors import DataError
from data_prep.jobs.record import (
    ShardResult,
    index_table,
    read_result,
    rejected_lines,
    shard_record,
    stored_names,
)
from data_prep.jobs.write import printable
from data_prep.schema import (
    INDEX_NAME,
    INDEX_SCHEMA,
    MANIFEST_NAME,
    QUARANTINE_NAME,
    Manifest,
    ShardRecord,
)
from data_prep.storage import Store, open_store
from data_prep.workdir import SplitPlan, Workdir

_SEALED_NAME = "sealed.json"


def seal(work: Path, *, only_as: Collection[str] | None = None) -> Manifest:
    """Write `quarantine.jsonl`, `index.parquet` and, last, `manifest.json`.

    The caller holds `Workdir.alone`. Raises `DataError` when a planned shard is not done, when no
    input could be used, or, before anything is written, when the digest is not among `only_as`.
    """
    workdir = Workdir(work)
    plans = workdir.plans()
    if not plans:
        raise DataError(f"{work}: no plan; run `vmp data shard` to make one")
    store = open_store(plans[0].out, workdir.scratch)
    _refuse_gaps(store, plans)
    store.sweep(stored_names([name for plan in plans for name in plan.shard_names()]))

    quarantine = io.BytesIO()
    table = io.BytesIO()
    shards: list[ShardRecord] = []
    splits: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    rejected = 0
    named = _named_sources(workdir, plans)
    with pq.ParquetWriter(table, INDEX_SCHEMA) as index:
        for plan in plans:
            for line in _problem_lines(workdir, plan.split, named):
                reasons[line["code"]] += 1
                _append(quarantine, line)
            for result in _results(store, plan):
                rejected += len(result.rejected)
                for line in rejected_lines(result):
                    reasons[line["code"]] += 1
                    _append(quarantine, line)
                if result.samples:
                    index.write_table(index_table(result))
                    shards.append(shard_record(result))
                    splits[result.split] += result.samples
    if not shards:
        listed = ", ".join(f"{count} {code}" for code, count in reasons.most_common())
        store.write(QUARANTINE_NAME, quarantine.getvalue())
        raise DataError(f"{plans[0].out}: no input could be used ({listed}); see {QUARANTINE_NAME}")

    _refuse_losses(store, plans, quarantine, reasons, rejected)
    manifest = Manifest(
        dataset=plans[0].dataset,
        classes=plans[0].classes,
        splits=dict(sorted(splits.items())),
        settings=shaping(plans[0]),
        shards=tuple(shards),
        index_sha256=hashlib.sha256(table.getvalue()).hexdigest(),
    ).sealed()
    if only_as is not None and manifest.digest not in only_as:
        raise DataError(
            f"{plans[0].out}: its shards would be sealed as another data set "
            f"({manifest.digest[:12]}), so the seal stays as it is; to accept that, remove "
            f"{MANIFEST_NAME} and run the same `vmp data shard` again"
        )

    _reopen(workdir, store)
    store.write(QUARANTINE_NAME, quarantine.getvalue())
    store.write(INDEX_NAME, table.getvalue())
    store.write(MANIFEST_NAME, manifest.model_dump_json(indent=1).encode())
    publish(workdir.root / _SEALED_NAME, _sealed_plans(plans))
    return manifest


def _refuse_losses(
    store: Store,
    plans: list[SplitPlan],
    quarantine: io.BytesIO,
    reasons: Counter[str],
    rejected: int,
) -> None:
    """Raise `DataError` for too many losses; the `rejected` clips count like those of the plan."""
    planned = sum(plan.num_clips for plan in plans)
    lines = map(json.loads, quarantine.getvalue().splitlines())
    serious = [line for line in lines if line["code"] not in HARMLESS]
    total = planned + len(serious) - rejected
    allowed = max(plan.max_missing for plan in plans)
    if len(serious) <= allowed * total:
        return
    store.write(QUARANTINE_NAME, quarantine.getvalue())
    listed = ", ".join(f"{n} {code}" for code, n in reasons.most_common() if code not in HARMLESS)
    first = serious[0]
    raise DataError(
        f"{plans[0].out}: {len(serious)} of {total} clips were lost ({listed}), more than "
        f"--max-missing {allowed:g}, so nothing is sealed; first: {first['where']}: "
        f"{first['code']}, {first['detail']}; all in {QUARANTINE_NAME}; run again with a higher "
        "--max-missing to seal what there is"
    )


def _reopen(workdir: Workdir, store: Store) -> None:
    """Remove the seal, so that the old manifest never describes new files."""
    (workdir.root / _SEALED_NAME).unlink(missing_ok=True)
    store.remove(MANIFEST_NAME)


def seal_is_current(workdir: Workdir, plans: list[SplitPlan]) -> bool:
    """Whether the last seal covered exactly these plans."""
    path = workdir.root / _SEALED_NAME
    return path.exists() and path.read_bytes() == _sealed_plans(plans)


def _sealed_plans(plans: list[SplitPlan]) -> bytes:
    return json.dumps({plan.split: plan.fingerprint for plan in plans}).encode()


def shaping(plan: SplitPlan) -> dict[str, Any]:
    """The settings that all splits of a directory share."""
    return {
        "format": plan.format,
        "fold": plan.fold,
        "encode": plan.encode.model_dump(mode="json"),
        "clips_per_shard": plan.clips_per_shard,
        # Manifests of version 1 lack the field, and keep their digest without it.
        **({"picture_version": plan.picture_version} if plan.picture_version > 1 else {}),
    }


def _refuse_gaps(store: Store, plans: list[SplitPlan]) -> None:
    gaps = [
        name
        for plan in plans
        for name in plan.shard_names()
        if read_result(store, name, plan.fingerprint) is None
    ]
    if gaps:
        total = sum(plan.num_shards for plan in plans)
        raise DataError(
            f"{plans[0].out}: {len(gaps)} of {total} shards are not done, first {gaps[0]}; "
            "run the same command again"
        )


def _results(store: Store, plan: SplitPlan) -> Iterator[ShardResult]:
    for name in plan.shard_names():
        result = read_result(store, name, plan.fingerprint)
        assert result is not None, f"{name} vanished while sealing"
        yield result


def _named_sources(workdir: Workdir, plans: list[SplitPlan]) -> set[str]:
    """Sources of all plans, which are outside the annotations of calls for other splits only."""
    if not any(item.code == "outside" for plan in plans for item in workdir.problems(plan.split)):
        return set()
    return {path for plan in plans for path in workdir.sources(plan)}


def _problem_lines(workdir: Workdir, split: str, named: set[str]) -> Iterator[dict[str, str]]:
    """Yield the problems of a split; `named` grows, so that an outside file is listed once."""
    for problem in workdir.problems(split):
        if problem.code == "outside":
            if problem.path in named:
                continue
            named.add(problem.path)
        yield {
            "code": problem.code,
            "detail": printable(problem.detail),
            "source": printable(problem.path),
            "where": printable(problem.where),
            "split": split,
        }


def _append(stream: io.BytesIO, line: dict[str, str]) -> None:
    stream.write(json.dumps(line).encode() + b"\n")
