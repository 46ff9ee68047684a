"""Implements `vmp data verify`: reads and checks everything that the manifest describes."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track

from data_prep.errors import DataError
from data_prep.options import work_dir
from data_prep.schema import (
    INDEX_NAME,
    INDEX_SCHEMA,
    MANIFEST_NAME,
    SCHEMA_VERSION,
    Manifest,
    how_to_seal,
)
from data_prep.sealed.affected import Affected, affected, picture_version
from data_prep.sealed.check_shard import Finding, check_shard
from data_prep.sealed.rebuild import rebuild
from data_prep.storage import Store, is_url, open_store


@dataclass(frozen=True, slots=True)
class Verification:
    """The outcome of a verification; the directory is sound when nothing was found."""

    digest: str
    shards: int
    samples: int
    findings: list[Finding]
    rebuilt: list[str]
    """Shards that `fix` rebuilt; `findings` are those that remained."""
    picture_version: int
    """The version of the pictures in the shards."""
    affected: list[Affected]
    """Faults of that version in sound shards; see docs/data.md."""


def verify(
    out: str,
    *,
    fix: bool = False,
    work: Path | None = None,
    workers: int | None = None,
    show_progress: bool = True,
) -> Verification:
    """Check the manifest, the index and every byte of every shard, in `workers` processes.

    With `fix`, damaged files are rebuilt as they were sealed; files for which that fails stay as
    they are and remain among the findings. Raises `DataError` when `out` holds no manifest, or no
    plan to fix it with.
    """
    if not is_url(out) and not Path(out).is_dir():
        raise DataError(f"{out}: no such directory")
    first = _verify(out, work, workers, show_progress)
    if not fix or not first.findings:
        return first
    manifest = _manifest(open_store(out, Path()), out)
    if manifest.adopted:
        raise DataError(
            f"{out}: adopted tars cannot be rebuilt ({first.findings[0]}); restore them, or remove "
            f"{MANIFEST_NAME} and run `vmp data adopt` again"
        )
    rebuilt, left = rebuild(out, work_dir(out, work), manifest, first.findings)
    second = _verify(out, work, workers, show_progress)
    return replace(second, findings=second.findings + left, rebuilt=rebuilt)


def _verify(out: str, work: Path | None, workers: int | None, show_progress: bool) -> Verification:
    store = open_store(out, Path())
    manifest = _manifest(store, out)
    findings = list(_check_manifest(manifest))
    rows_by_shard, index_findings = _check_index(store, manifest)
    findings += index_findings
    findings += _check_names(store, manifest)
    tasks = [(out, manifest, entry, rows_by_shard.get(entry.name, [])) for entry in manifest.shards]
    workers = workers or len(os.sched_getaffinity(0))
    if workers == 1:
        parts: Iterator[list[Finding]] = itertools.starmap(check_shard, tasks)
        findings += [item for part in _bar(parts, len(tasks), show_progress) for item in part]
    else:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            parts = pool.map(check_shard, *zip(*tasks, strict=True))
            findings += [item for part in _bar(parts, len(tasks), show_progress) for item in part]
    samples = sum(manifest.splits.values())
    older = affected(store, manifest, _plan_directory(out, work))
    return Verification(
        digest=manifest.digest,
        shards=len(manifest.shards),
        samples=samples,
        findings=findings,
        rebuilt=[],
        picture_version=picture_version(manifest),
        affected=older,
    )


def _plan_directory(out: str, work: Path | None) -> Path:
    """The directory of the plan; a path without one for a URL whose `work` is not given."""
    return Path(os.devnull) if work is None and is_url(out) else work_dir(out, work)


def _bar(
    parts: Iterator[list[Finding]], total: int, show_progress: bool
) -> Iterator[list[Finding]]:
    if not show_progress:
        return parts
    return iter(track(parts, "verifying", total=total, console=Console(stderr=True)))


def _manifest(store: Store, out: str) -> Manifest:
    try:
        return Manifest.model_validate_json(store.read(MANIFEST_NAME))
    except FileNotFoundError:
        raise DataError(
            f"{out}: no {MANIFEST_NAME}; not a sealed shard directory; {how_to_seal(store.names())}"
        ) from None
    except ValueError as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{out}/{MANIFEST_NAME}: not a manifest ({first})") from None


def _check_manifest(manifest: Manifest) -> Iterator[Finding]:
    if manifest.digest != manifest.compute_digest():
        yield Finding(MANIFEST_NAME, "manifest_digest", "its content is not what was sealed")
    if manifest.schema_version != SCHEMA_VERSION:
        detail = f"version {manifest.schema_version}, this program reads {SCHEMA_VERSION}"
        yield Finding(MANIFEST_NAME, "schema_version", detail)


def _check_index(
    store: Store, manifest: Manifest
) -> tuple[dict[str, list[dict[str, Any]]], list[Finding]]:
    """The rows of each shard, and the findings about the index as a whole."""
    try:
        content = store.read(INDEX_NAME)
        table = pq.read_table(io.BytesIO(content))
    except FileNotFoundError:
        return {}, [Finding(INDEX_NAME, "index_missing", "no such file")]
    except pa.ArrowException as error:
        return {}, [Finding(INDEX_NAME, "index_unreadable", str(error).splitlines()[0])]
    findings: list[Finding] = []
    if hashlib.sha256(content).hexdigest() != manifest.index_sha256:
        findings.append(Finding(INDEX_NAME, "index_sha256", "not the index that was sealed"))
    if not table.schema.equals(INDEX_SCHEMA):
        return {}, [*findings, Finding(INDEX_NAME, "index_schema", "columns differ")]
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        rows.setdefault(row["shard"], []).append(row)
    keys = Counter(table["key"].to_pylist())
    findings += [
        Finding(INDEX_NAME, "duplicate_key", f"{count} samples", key)
        for key, count in keys.items()
        if count > 1
    ]
    splits = Counter(table["split"].to_pylist())
    if dict(splits) != manifest.splits:
        detail = f"{dict(splits)}, manifest {manifest.splits}"
        findings.append(Finding(INDEX_NAME, "split_counts", detail))
    if list(rows) != [entry.name for entry in manifest.shards]:
        detail = "its shards are not those of the manifest in their order"
        findings.append(Finding(INDEX_NAME, "shard_order", detail))
    return rows, findings


def _check_names(store: Store, manifest: Manifest) -> Iterator[Finding]:
    if manifest.adopted:
        return  # a tar without a usable sample is in no manifest, and nobody may delete it
    named = {entry.name for entry in manifest.shards}
    for name in store.names():
        if name.endswith(".tar") and name not in named:
            yield Finding(name, "extra_shard", "the manifest does not name it")
