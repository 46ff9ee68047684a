"""Surveys the content of a sealed shard directory through its records."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.errors import DataError
from data_prep.jobs.record import SampleRow, ShardResult, record_name
from data_prep.schema import MANIFEST_NAME, QUARANTINE_NAME, Manifest, how_to_seal
from data_prep.storage import Store, open_store


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample as the report shows it."""

    split: str
    shard: str
    row: SampleRow


@dataclass(frozen=True, slots=True)
class SameContent:
    """Samples with equal encoded bytes: the same frames under several names."""

    samples: tuple[Sample, ...]

    @property
    def splits(self) -> frozenset[str]:
        return frozenset(sample.split for sample in self.samples)

    @property
    def labels(self) -> frozenset[int]:
        return frozenset(sample.row.label for sample in self.samples)


@dataclass(slots=True)
class Survey:
    manifest: Manifest
    samples: list[Sample] = field(default_factory=list)
    quarantine: list[dict[str, str]] = field(default_factory=list)
    prep_s: float = 0.0
    """The time spent on all shards together."""

    def per_class(self) -> dict[str, Counter[int]]:
        """The number of samples by split and class number."""
        counts: dict[str, Counter[int]] = {split: Counter() for split in self.manifest.splits}
        for sample in self.samples:
            counts[sample.split][sample.row.label] += 1
        return counts

    def same_content(self) -> list[SameContent]:
        """Groups of equal clips; groups that span splits come first."""
        groups: dict[str, list[Sample]] = {}
        for sample in self.samples:
            groups.setdefault(sample.row.sha256, []).append(sample)
        repeated = [SameContent(tuple(group)) for group in groups.values() if len(group) > 1]
        return sorted(repeated, key=lambda group: (len(group.splits) == 1, -len(group.samples)))


def survey(store: Store, out: str) -> Survey:
    """Read the manifest, the records and the quarantine. Raises `DataError` when one is absent."""
    try:
        manifest = Manifest.model_validate_json(store.read(MANIFEST_NAME))
        found = Survey(manifest)
        for entry in manifest.shards:
            result = ShardResult.model_validate_json(store.read(record_name(entry.name)))
            found.samples += [Sample(result.split, result.name, row) for row in result.rows]
            found.prep_s += result.timings.wall_s
        lines = store.read(QUARANTINE_NAME).splitlines()
    except FileNotFoundError as error:
        if store.size(MANIFEST_NAME) is None:
            raise DataError(
                f"{out}: not a whole shard directory, no {MANIFEST_NAME}; "
                f"{how_to_seal(store.names())}"
            ) from None
        absent = str(error.filename or error)
        raise DataError(
            f"{out}: not a whole shard directory ({absent} is absent); see vmp data verify"
        ) from None
    except ValueError as error:
        first = str(error).splitlines()[0]
        raise DataError(
            f"{out}: not a whole shard directory ({first}); see vmp data verify"
        ) from None
    found.quarantine = [json.loads(line) for line in lines]
    return found


def reasons(out: str) -> Counter[str]:
    """The number of inputs that a sealed directory leaves out, by code."""
    lines = open_store(out, Path()).read(QUARANTINE_NAME).splitlines()
    return Counter(json.loads(line)["code"] for line in lines)
