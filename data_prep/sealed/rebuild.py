"""Implements `vmp data verify --fix`: rebuilds damaged shards beside the old files.

The old files may hold the last copy of most samples of a damaged shard, so they stay until the new
shard is proven to equal, byte for byte, the one that was sealed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data_prep.errors import DataError
from data_prep.jobs.job import make_shards
from data_prep.jobs.record import ShardResult, read_result, record_name
from data_prep.options import absolute_out
from data_prep.schema import INDEX_NAME, MANIFEST_NAME, Manifest, ShardRecord
from data_prep.sealed.check_shard import Finding
from data_prep.sealed.seal import seal
from data_prep.storage import DirectoryStore, Store, open_store
from data_prep.workdir import Workdir


def rebuild(
    out: str, work: Path, manifest: Manifest, findings: Sequence[Finding]
) -> tuple[list[str], list[Finding]]:
    """Rebuild the files that `findings` name.

    Returns the names of the replaced shards, and findings about those left as they were. Raises
    `DataError` when the plan is gone.
    """
    workdir = Workdir(work)
    if work.is_dir():
        workdir.relocate(absolute_out(out))
    plans = workdir.plans()
    if not plans:
        raise DataError(f"{out}: cannot be fixed, its plan {work} is gone; shard again elsewhere")
    store = open_store(plans[0].out, workdir.scratch)
    fingerprints = {name: plan.fingerprint for plan in plans for name in plan.shard_names()}
    found_in = {finding.file for finding in findings}
    damaged = {
        entry.name: entry
        for entry in manifest.shards
        if entry.name in found_in & fingerprints.keys()
        and not _is_whole(store, entry, fingerprints[entry.name], manifest)
    }
    beside = work / "rebuild"
    shutil.rmtree(beside, ignore_errors=True)  # left by a killed run
    rebuilt: list[str] = []
    left: list[Finding] = []
    if damaged:
        beside.mkdir()
        made = DirectoryStore(beside)
        make_shards(workdir, made, damaged)
        for name, entry in damaged.items():
            result = read_result(made, name, fingerprints[name])
            assert result is not None, f"{name}: was just made"
            if result.sha256 == entry.sha256:
                _replace(store, made, name)
                rebuilt.append(name)
            else:
                left.append(Finding(name, "not_rebuilt", _reason(result, entry)))
        shutil.rmtree(beside)
    if not left and found_in & {MANIFEST_NAME, INDEX_NAME}:
        try:
            with workdir.alone():
                seal(work, only_as={manifest.digest, manifest.compute_digest()})
        except DataError as error:
            left.append(Finding(MANIFEST_NAME, "not_resealed", str(error)))
    return rebuilt, left


def _is_whole(store: Store, entry: ShardRecord, plan: str, manifest: Manifest) -> bool:
    """Whether tar and record are as sealed, so that the index is at fault."""
    result = read_result(store, entry.name, plan)
    if result is None:
        return False
    if manifest.digest == manifest.compute_digest() and result.sha256 != entry.sha256:
        return False
    return hashlib.sha256(store.read(entry.name)).hexdigest() == result.sha256


def _replace(store: Store, made: DirectoryStore, name: str) -> None:
    """Replace the tar, then its record. The manifest describes the same bytes before and after."""
    scratch = store.scratch(f"{name}.rebuilt")
    with made.open(name) as source, scratch.open("wb") as target:
        shutil.copyfileobj(source, target)
        target.flush()
        os.fsync(target.fileno())
    store.put(scratch, name)
    store.write(record_name(name), made.read(record_name(name)))


def _reason(result: ShardResult, entry: ShardRecord) -> str:
    if result.samples < entry.samples:
        codes = Counter(row.code for row in result.rejected)
        listed = ", ".join(f"{count} {code}" for code, count in codes.most_common())
        reason = f"{result.samples} of {entry.samples} samples can be made again ({listed})"
    else:
        reason = "its sources or the encoder changed, so it would hold other bytes"
    return f"{reason}; left as it is"
