"""Seals adopted tars: one split is replaced, the other splits of the directory stay."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.adopted.tar import Identity
from data_prep.annotation import HARMLESS
from data_prep.errors import DataError
from data_prep.jobs.record import (
    ShardResult,
    index_table,
    rejected_lines,
    shard_record,
    stored_names,
)
from data_prep.schema import (
    ADOPTED_FORMAT,
    INDEX_NAME,
    INDEX_SCHEMA,
    MANIFEST_NAME,
    QUARANTINE_NAME,
    Manifest,
)
from data_prep.storage import Store
from data_prep.video.picture import PICTURE_VERSION, SHORT_SIDE


def known_manifest(store: Store, out: str, split: str, names: Sequence[str]) -> Manifest | None:
    """Return the seal of other splits in the directory; None when there are none.

    Raises `DataError` when the directory holds shards of `vmp data shard`, or the same tars as
    another split.
    """
    try:
        known = Manifest.model_validate_json(store.read(MANIFEST_NAME))
    except FileNotFoundError:
        return None
    except ValueError as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{out}/{MANIFEST_NAME}: not a manifest ({first}); remove it") from None
    if not known.adopted:
        raise DataError(f"{out}: holds shards of `vmp data shard`; choose another --out")
    others = {record.name: record.split for record in known.shards if record.split != split}
    for name in names:
        if name in others:
            raise DataError(
                f"{out}/{name}: belongs to split {others[name]!r} already; remove {MANIFEST_NAME} "
                "to give it another split, or choose another --out"
            )
    return known if others else None


def seal_split(
    store: Store,
    out: str,
    results: Sequence[ShardResult],
    known: Manifest | None,
    identity: Identity,
    classes: tuple[str, ...],
    max_missing: float,
) -> Manifest:
    """Write `quarantine.jsonl`, `index.parquet` and, last, `manifest.json`.

    Raises `DataError` when too many samples, or all, were rejected.
    """
    split = identity.split
    left_out = [line for result in results for line in rejected_lines(result)]
    quarantine = _lines_of_others(store, split) if known else []
    quarantine += left_out
    _refuse_losses(store, out, results, left_out, quarantine, max_missing)
    used = [result for result in results if result.samples]
    table = pa.concat_tables([index_table(result) for result in used])
    records = [shard_record(result) for result in used]
    if known is not None:
        old = pq.read_table(io.BytesIO(store.read(INDEX_NAME)))
        table = pa.concat_tables([old.filter(pc.not_equal(old["split"], split)), table])
        records = [*(record for record in known.shards if record.split != split), *records]
    content = io.BytesIO()
    pq.write_table(table.cast(INDEX_SCHEMA), content)
    splits = Counter(table["split"].to_pylist())
    manifest = Manifest(
        dataset=known.dataset if known else identity.dataset,
        classes=classes,
        splits=dict(sorted(splits.items())),
        settings={
            "format": ADOPTED_FORMAT,
            "short_side": SHORT_SIDE,
            "picture_version": PICTURE_VERSION,
        },
        shards=tuple(records),
        index_sha256=hashlib.sha256(content.getvalue()).hexdigest(),
    ).sealed()
    store.sweep(stored_names([result.name for result in results]))
    store.remove(MANIFEST_NAME)  # so that an old seal never describes a new index
    _write_lines(store, quarantine)
    store.write(INDEX_NAME, content.getvalue())
    store.write(MANIFEST_NAME, manifest.model_dump_json(indent=1).encode())
    return manifest


def _refuse_losses(
    store: Store,
    out: str,
    results: Sequence[ShardResult],
    left_out: list[dict[str, str]],
    quarantine: list[dict[str, str]],
    max_missing: float,
) -> None:
    total = sum(result.samples + len(result.rejected) for result in results)
    kept = sum(result.samples for result in results)
    serious = [line for line in left_out if line["code"] not in HARMLESS]
    if kept and len(serious) <= max_missing * total:
        return
    _write_lines(store, quarantine)
    counts = Counter(line["code"] for line in serious).most_common()
    listed = ", ".join(f"{count} {code}" for code, count in counts)
    if not total:
        raise DataError(
            f"{out}: no sample in these tars: no video with a cls, txt or json beside it"
        )
    first = serious[0]
    advice = (
        "run again with a higher --max-missing to use what there is"
        if kept
        else "so nothing could be used"
    )
    raise DataError(
        f"{out}: {len(serious)} of {total} samples are unusable ({listed}), more than "
        f"--max-missing {max_missing:g}; first: {first['source']}: {first['code']}, "
        f"{first['detail']}; all in {QUARANTINE_NAME}; {advice}"
    )


def _lines_of_others(store: Store, split: str) -> list[dict[str, str]]:
    try:
        lines = map(json.loads, store.read(QUARANTINE_NAME).splitlines())
        return [line for line in lines if line.get("split") != split]
    except (FileNotFoundError, ValueError):
        return []


def _write_lines(store: Store, lines: list[dict[str, str]]) -> None:
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    store.write(QUARANTINE_NAME, content)
