"""Implements `vmp data shard`: plan, run the jobs, seal.

`prepare` plans, `run_shard_worker` is the job, in local processes or through a scheduler, and
`finish` writes the manifest. Every step may be killed and repeated.
"""

from __future__ import annotations

import os
from pathlib import Path

from data_prep.errors import DataError
from data_prep.intake import plan_inputs
from data_prep.jobs.job import run_jobs
from data_prep.jobs.record import read_result, record_name
from data_prep.options import ShardConfig, absolute_out, work_dir
from data_prep.schema import MANIFEST_NAME, Manifest
from data_prep.sealed.seal import seal, seal_is_current
from data_prep.storage import Store, open_store
from data_prep.workdir import SplitPlan, Workdir


def shard(config: ShardConfig, *, show_progress: bool = True) -> Manifest:
    """Shard on this machine and seal. A second call with the same input does nothing.

    Raises `DataError` for bad input.
    """
    work = prepare(config)
    manifest = sealed(work)
    if manifest is not None:
        return manifest
    decoders = config.decoders or max(1, len(os.sched_getaffinity(0)) // config.jobs)
    run_jobs(work, jobs=config.jobs, decoders=decoders, show_progress=show_progress)
    return finish(work)


def finish(work: Path) -> Manifest:
    """Seal what the jobs made, unless another call has done so. Raises `DataError` as `seal`."""
    with Workdir(work).alone():
        return sealed(work) or seal(work)


def prepare(config: ShardConfig) -> Path:
    """Read the annotations, plan every split they name, and return the work directory.

    Raises `DataError` for bad input, or when the output holds the same split made from other inputs
    or with other settings.
    """
    workdir = Workdir(work_dir(config.out, config.work))
    store = open_store(config.out, workdir.scratch)
    workdir.create()
    with workdir.alone():
        _plan(config, workdir, store)
    return workdir.root


def _plan(config: ShardConfig, workdir: Workdir, store: Store) -> None:
    workdir.relocate(absolute_out(config.out))
    known = {plan.split: plan for plan in workdir.plans()}
    for plan, shards, problems in plan_inputs(config, workdir, known):
        if plan.split not in known:
            workdir.save_plan(plan, shards, problems)
        elif known[plan.split].fingerprint != plan.fingerprint:
            raise DataError(_difference(known[plan.split], plan))
        else:
            workdir.allow_missing(known[plan.split], config.max_missing)
    _reopen_lost(store, workdir.plans())
    workdir.forget_progress()


def _difference(old: SplitPlan, new: SplitPlan) -> str:
    content = "the inputs"
    if old.picture_version != new.picture_version:
        return (
            f"--out {old.out}: holds split {old.split!r} as an earlier version made it; see with "
            "`vmp data verify` whether its pictures are affected, and choose another --out to make "
            "them again"
        )
    for field in ("dataset", "classes", "format", "fold", "encode", "clips_per_shard", "num_clips"):
        before, now = getattr(old, field), getattr(new, field)
        if before != now:
            content = f"{field} {before}, now {now}"
            break
    return (
        f"--out {old.out}: holds split {old.split!r} made from something else ({content}); "
        "choose another --out, or delete it to start again"
    )


def _reopen_lost(store: Store, plans: list[SplitPlan]) -> None:
    """Remove the records of shards whose tar has vanished, so that they are made again."""
    names = set(store.names())
    for plan in plans:
        for name in plan.shard_names():
            if (
                record_name(name) in names
                and name not in names
                and read_result(store, name, plan.fingerprint) is None
            ):
                store.remove(record_name(name))


def sealed(work: Path) -> Manifest | None:
    """The manifest, if it covers all plans and every tar is present; None otherwise."""
    workdir = Workdir(work)
    plans = workdir.plans()
    store = open_store(plans[0].out, workdir.scratch)
    if not seal_is_current(workdir, plans):
        return None
    try:
        manifest = Manifest.model_validate_json(store.read(MANIFEST_NAME))
    except (FileNotFoundError, ValueError):
        return None
    whole = all(store.size(entry.name) == entry.bytes for entry in manifest.shards)
    return manifest if whole else None
