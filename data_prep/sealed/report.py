"""Implements `vmp data report`: one self-contained HTML page about a shard directory.

This module counts what the template `report.html` shows; Jinja escapes every value.
"""

from __future__ import annotations

import base64
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from data_prep.durable import publish
from data_prep.errors import DataError
from data_prep.jobs.record import SampleRow
from data_prep.sealed.contact_sheet import STRIP_FRAMES, foreign_strip_jpeg, strip_jpeg
from data_prep.sealed.published import compare_with_published
from data_prep.sealed.survey import Sample, Survey, survey
from data_prep.storage import Store, is_url, open_store

REPORT_NAME = "report.html"
_MAX_SHEETS = 60
_CLIPS_PER_CLASS = 3
_MAX_LISTED = 200

Counts = list[tuple[str, int]]


def report(out: str, *, page: Path | None = None, seed: int = 0) -> Path:
    """Write the page, by default to `report.html` in `out`, and return its path.

    `seed` chooses the clips of the contact sheets. Raises `DataError` when `out` is not a sealed
    shard directory or is a URL and `page` is not given.
    """
    if page is None:
        if is_url(out):
            raise DataError(f"{out}: a URL also needs the path of the page to write")
        page = Path(out) / REPORT_NAME
    if not is_url(out) and not Path(out).is_dir():
        raise DataError(f"{out}: no such directory")
    store = open_store(out, Path())
    found = survey(store, out)
    jinja = Environment(autoescape=True, undefined=StrictUndefined)
    jinja.filters["thousands"] = "{:,}".format
    template = jinja.from_string(files(__package__).joinpath("report.html").read_text())
    html = template.render(
        title=f"Data report: {found.manifest.dataset}",
        digest=found.manifest.digest,
        adopted=found.manifest.adopted,
        splits=list(found.manifest.splits),
        cards=_cards(found),
        leakage=_leakage(found),
        left_out=_left_out(found),
        published=compare_with_published(found),
        histograms=_histograms(found),
        counted=_counted(found),
        clips_in_all=len(found.samples),
        classes=_classes(found),
        sheets=_sheets(found, store, random.Random(seed)),
    )
    publish(page, html.encode())
    return page


def _cards(found: Survey) -> list[tuple[str, str]]:
    """Pairs of a number and what it counts."""
    manifest = found.manifest
    hours = sum(sample.row.duration_s for sample in found.samples) / 3600
    stored = sum(entry.bytes for entry in manifest.shards)
    source = sum(sample.row.source_bytes for sample in found.samples)
    shards = "1 shard" if len(manifest.shards) == 1 else f"{len(manifest.shards):,} shards"
    return [
        *((f"{count:,}", f"clips in {split}") for split, count in manifest.splits.items()),
        (f"{len(manifest.classes):,}", "classes"),
        (f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.1f} min", "of video"),
        (_size(stored), f"in {shards}; sources {_size(source)}"),
        (f"{len(found.quarantine):,}", "inputs left out"),
    ]


def _leakage(found: Survey) -> dict[str, Any]:
    groups = found.same_content()
    across = sum(len(group.splits) > 1 for group in groups)
    return {
        "across": across,
        "within": len(groups) - across,
        "relabelled": sum(len(group.labels) > 1 for group in groups),
        "rows": [
            (
                " and ".join(sorted(group.splits)),
                ", ".join(sorted(_class_name(found, label) for label in group.labels)),
                ", ".join(sample.row.source for sample in group.samples),
            )
            for group in groups[:_MAX_LISTED]
        ],
    }


def _left_out(found: Survey) -> dict[str, Any]:
    lines = found.quarantine
    return {
        "counts": Counter(line["code"] for line in lines).most_common(),
        "total": len(lines),
        "rows": [
            (line["code"], line["source"], line["where"], line["detail"])
            for line in lines[:_MAX_LISTED]
        ],
        "more": max(0, len(lines) - _MAX_LISTED),
    }


@dataclass(slots=True)
class _Histogram:
    """A histogram; `heights` is empty when all values are equal."""

    title: str
    values: int
    low: float
    median: float
    high: float
    heights: list[tuple[int, float]] = field(default_factory=list)
    """The count and the height, in percent of the highest, of each column."""


def _histograms(found: Survey) -> list[_Histogram]:
    rows = [sample.row for sample in found.samples]
    return [
        _histogram("Duration, seconds", [row.duration_s for row in rows]),
        _histogram("Frames", [float(row.frames) for row in rows]),
        _histogram("Frames per second", [row.fps for row in rows]),
    ]


def _histogram(title: str, values: Sequence[float], bins: int = 24) -> _Histogram:
    low, high = min(values), max(values)
    shown = _Histogram(title, len(values), low, sorted(values)[len(values) // 2], high)
    if low < high:
        counts = [0] * bins
        for value in values:
            counts[min(bins - 1, int((value - low) / (high - low) * bins))] += 1
        shown.heights = [(count, 100 * count / max(counts)) for count in counts]
    return shown


def _counted(found: Survey) -> list[tuple[str, Counts]]:
    """How many clips have each property; a clip may have several peculiarities, or none."""
    rows = [sample.row for sample in found.samples]
    return [
        ("Size of the sources", _top(f"{r.source_width}x{r.source_height}" for r in rows)),
        ("Size in the shards", _top(f"{r.width}x{r.height}" for r in rows)),
        ("Codec of the sources", _top(row.codec for row in rows)),
        ("Container of the sources", _top(row.container for row in rows)),
        ("Pixel format of the sources", _top(row.pixel_format for row in rows)),
        ("Peculiar sources", _top(name for row in rows for name in _peculiarities(row))),
    ]


def _peculiarities(row: SampleRow) -> Iterable[str]:
    if row.rotation:
        yield "rotated (turned upright)"
    if row.sample_aspect != 1.0:
        yield "pixels that are not square"
    if row.hdr:
        yield "HDR (not tone-mapped)"
    if row.copied:
        yield "kept byte for byte"


def _top(values: Iterable[str], most: int = 8) -> Counts:
    counts = Counter(values)
    shown = counts.most_common(most)
    rest = sum(counts.values()) - sum(count for _, count in shown)
    return [*shown, (f"{len(counts) - most:,} others", rest)] if rest else shown


def _classes(found: Survey) -> dict[str, Any]:
    counts = found.per_class()
    numbers = range(len(found.manifest.classes))
    notes = []
    for split in found.manifest.splits:
        sizes = sorted(counts[split][number] for number in numbers)
        if sizes:
            middle = sizes[len(sizes) // 2]
            notes.append(f"{split}: {sizes[0]:,} to {sizes[-1]:,} per class, median {middle:,}")
    return {
        "notes": notes,
        "largest": max((max(c.values(), default=0) for c in counts.values()), default=0) or 1,
        "rows": [
            (name, [counts[split][number] for split in found.manifest.splits])
            for number, name in enumerate(found.manifest.classes)
        ],
    }


def _sheets(found: Survey, store: Store, chooser: random.Random) -> dict[str, Any]:
    by_class: dict[int, list[Sample]] = {}
    for sample in found.samples:
        by_class.setdefault(sample.row.label, []).append(sample)
    labels = sorted(by_class)
    if len(labels) > _MAX_SHEETS:
        labels = sorted(chooser.sample(labels, _MAX_SHEETS))
    figures = []
    for label in labels:
        clips = chooser.sample(by_class[label], min(_CLIPS_PER_CLASS, len(by_class[label])))
        strips = [_strip(found, store, sample) for sample in clips]
        figures.append((_class_name(found, label), strips))
    note = (
        f"{STRIP_FRAMES} frames from first to last of up to {_CLIPS_PER_CLASS} random clips per "
        f"class; {len(labels)} of {len(by_class)} classes."
    )
    return {"note": note, "figures": figures}


def _strip(found: Survey, store: Store, sample: Sample) -> tuple[str, str]:
    """The title of a clip and its strip, JPEG in base64."""
    with store.open(sample.shard) as tar:
        tar.seek(sample.row.offset)
        video = tar.read(sample.row.size)
    adopted = found.manifest.adopted
    jpeg = foreign_strip_jpeg(video, sample.row.frames) if adopted else strip_jpeg(video)
    return f"{sample.split}: {sample.row.source}", base64.b64encode(jpeg).decode()


def _class_name(found: Survey, label: int) -> str:
    return found.manifest.classes[label] if label >= 0 else "unlabelled"


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
