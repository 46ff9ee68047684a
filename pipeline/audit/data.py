"""Whether the shards are those that the run has trained on, byte for byte."""

from __future__ import annotations

import hashlib

from pipeline.audit.evidence import Evidence
from pipeline.audit.result import Check
from pipeline.data.shards import Shards
from pipeline.open_data import data_digest

_CHUNK = 1 << 24


def check_data(evidence: Evidence, *, quick: bool = False) -> Check:
    """Compare the digest of the shards with that of the checkpoints, and their bytes with the seal.

    `quick` leaves out the bytes of the shards. Their sizes, the index and the manifest have been
    checked when the directory was opened.
    """
    name = "data"
    recorded = {item.state.data_digest: item.path for item in evidence.checkpoints}
    if len(recorded) > 1:
        paths = " and ".join(map(str, recorded.values()))
        return Check(name=name, detail="", faults=(f"{paths} were trained on different data",))
    if evidence.train is None or evidence.val is None:
        return Check(name=name, detail="", doubts=(evidence.missing_data,))
    (digest,) = recorded
    found = data_digest(evidence.train, evidence.val)
    if found != digest:
        doubt = (
            f"{evidence.train.location}: other data (digest {found[:12]}) than the run was trained "
            f"on ({digest[:12]}); give the place of the right shards: data.train=DIR"
        )
        return Check(name=name, detail="", doubts=(doubt,))
    if quick:
        detail = "digest, manifest, index and sizes; the bytes of the shards were not read (quick)"
        return Check(name=name, detail=detail)
    try:
        faults = _altered(evidence.train)
    except OSError as error:
        return Check(name=name, detail="", doubts=(f"{evidence.train.location}: {error}",))
    records = evidence.train.records
    size = sum(record.bytes for record in records) / 1e6
    detail = f"digest, manifest, index, and sha256 of {len(records)} shards ({size:,.1f} MB)"
    return Check(name=name, detail=detail, faults=tuple(faults))


def _altered(shards: Shards) -> list[str]:
    """Return what is wrong with the bytes of the shards. Raises OSError if storage fails."""
    storage = shards.reader().storage
    faults = []
    for record in shards.records:
        digest = hashlib.sha256()
        for offset in range(0, record.bytes, _CHUNK):
            digest.update(storage.read(record.name, offset, min(_CHUNK, record.bytes - offset)))
        if digest.hexdigest() != record.sha256:
            faults.append(
                f"{shards.location}/{record.name}: its sha256 is not the one that was sealed"
            )
    return faults
