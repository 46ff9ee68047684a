"""The work of one process on a study: it trains what no other process trains, until all is done."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from data_prep.jobs.claims import Claims
from pipeline import provenance
from pipeline.study.design import Design, Unit
from pipeline.study.store import Store
from pipeline.study.train import Result, run_unit
from pipeline.training import distributed

_LOOK_AGAIN_S = 2.0


def run_study(folder: Path, design: Design, tell: Callable[[str], None]) -> Store:
    """Train every unit of `design` that has no result in `folder`, and return the full store.

    Any number of processes may work on one directory. A unit that was being trained when its
    process died starts again from its beginning; a finished one is never repeated. Units that
    depend on tuning wait for it, and the process takes others meanwhile.
    """
    torch.set_num_threads(1)
    store = Store.make(folder, design)
    units, host = list(design.units()), _host()
    told_of_waiting = False
    with Claims(store.claims) as claims:
        while pending := [unit for unit in units if store.result(unit) is None]:
            result = _train_next(pending, store, claims, host)
            if result is not None:
                tell(_line(result, len(units) - len(pending) + 1, len(units)))
                told_of_waiting = False
                continue
            if not told_of_waiting:
                tell(f"{len(pending)} units are in the hands of other processes; waiting")
                told_of_waiting = True
            time.sleep(_LOOK_AGAIN_S)
    distributed.leave()
    return store


def _train_next(
    pending: list[Unit], store: Store, claims: Claims, host: Mapping[str, str]
) -> Result | None:
    """Train the first unit that is ready and free; None when there is none."""
    for unit in pending:
        settings = unit.settings or store.chosen(unit.data, unit.arm)
        if settings is None:
            continue
        claim = claims.take(unit.name)
        if claim is None:
            continue
        try:
            if store.result(unit) is not None:  # its owner finished it a moment ago
                continue
            result = run_unit(unit, settings, store.design, store.clips, host)
            store.keep(result)
            return result
        finally:
            claims.release(claim)
    return None


def _line(result: Result, done: int, total: int) -> str:
    top1 = result.val_top1 if result.test_top1 is None else result.test_top1
    where = "val" if result.test_top1 is None else "test"
    end = "" if result.diverged_at is None else f", diverged at step {result.diverged_at}"
    return (
        f"{done}/{total}  {result.unit.name}: {where} top-1 {top1:.1%}{end}  "
        f"({result.cpu_s:.0f} s of CPU)"
    )


def _host() -> dict[str, str]:
    """Processor, torch and commit, for the record of each unit."""
    collected = provenance.collect()
    git = collected["git"] or {}
    commit = str(git.get("commit", "unknown"))[:12] + ("+" if git.get("dirty") else "")
    return {"processor": _processor(), "torch": torch.__version__, "commit": commit}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
