"""`vmp data report`: one HTML page about a shard directory, without anything beside it."""

from __future__ import annotations

import base64
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from data_prep.durable import publish
from data_prep.errors import DataError
from data_prep.jobs.record import SampleRow
from data_prep.sealed.contact_sheet import STRIP_FRAMES, strip_jpeg
from data_prep.sealed.survey import Sample, Survey, survey
from data_prep.storage import Store, is_url, open_store

REPORT_NAME = "report.html"
_MAX_SHEETS = 60
_CLIPS_PER_CLASS = 3
_MAX_LISTED = 200


def report(out: str, *, page: Path | None = None, seed: int = 0) -> Path:
    """Write the page, by default `report.html` in `out`, and return its path.

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
    template = Template(files(__package__).joinpath("report.html").read_text())
    manifest = found.manifest
    html = template.substitute(
        title=escape(f"Data report: {manifest.dataset}"),
        subtitle=f"<code>{manifest.digest}</code> names this data set in checkpoints and runs.",
        body="\n".join(
            [
                _totals(found),
                _leakage(found),
                _quarantine(found),
                _distributions(found),
                _classes(found),
                _sheets(found, store, random.Random(seed)),
            ]
        ),
    )
    publish(page, html.encode())
    return page


def _totals(found: Survey) -> str:
    hours = sum(sample.row.duration_s for sample in found.samples) / 3600
    stored = sum(entry.bytes for entry in found.manifest.shards)
    source = sum(sample.row.source_bytes for sample in found.samples)
    cards = [
        (f"{count:,}", f"clips in {split}") for split, count in found.manifest.splits.items()
    ] + [
        (f"{len(found.manifest.classes):,}", "classes"),
        (f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.1f} min", "of video"),
        (_size(stored), f"in {_shards(len(found.manifest.shards))}; sources {_size(source)}"),
        (f"{len(found.quarantine):,}", "inputs left out"),
    ]
    body = "".join(f"<div><b>{escape(b)}</b><span>{escape(s)}</span></div>" for b, s in cards)
    return f'<section class="cards">{body}</section>'


def _leakage(found: Survey) -> str:
    groups = found.same_content()
    across = [group for group in groups if len(group.splits) > 1]
    within = len(groups) - len(across)
    relabelled = sum(len(group.labels) > 1 for group in groups)
    if across:
        verdict = f'<p class="bad">{_clips(len(across))} in more than one split.</p>'
    else:
        verdict = '<p class="good">No clip appears in more than one split.</p>'
    summary = (
        f"<p>Compared by the hash of the encoded frames: copies are found under any name or "
        f"container. {_clips(within)} more than once within one split; groups of equal clips "
        f"that carry different labels: {relabelled:,}.</p>"
    )
    rows = [
        [
            " and ".join(sorted(group.splits)),
            ", ".join(sorted(_class_name(found, label) for label in group.labels)),
            ", ".join(sample.row.source for sample in group.samples),
        ]
        for group in groups[:_MAX_LISTED]
    ]
    table = _table(["splits", "classes", "sources"], rows) if rows else ""
    return f"<h2>Leakage between splits</h2>{verdict}{summary}{table}"


def _quarantine(found: Survey) -> str:
    if not found.quarantine:
        return '<h2>Left out</h2><p class="good">Nothing: every listed input is in the shards.</p>'
    counts = Counter(line["code"] for line in found.quarantine)
    bars = _bars(counts.most_common(), sum(counts.values()))
    rows = [
        [line["code"], line["source"], line["where"], line["detail"]]
        for line in found.quarantine[:_MAX_LISTED]
    ]
    more = len(found.quarantine) - len(rows)
    note = f"<p>{more:,} more in quarantine.jsonl.</p>" if more else ""
    table = _table(["reason", "source", "listed at", "detail"], rows)
    return f"<h2>Left out</h2>{bars}<p></p>{table}{note}"


def _distributions(found: Survey) -> str:
    rows = [sample.row for sample in found.samples]
    panels = [
        _histogram("Duration, seconds", [row.duration_s for row in rows]),
        _histogram("Frames", [float(row.frames) for row in rows]),
        _histogram("Frames per second", [row.fps for row in rows]),
        _counts("Size of the sources", (f"{r.source_width}x{r.source_height}" for r in rows)),
        _counts("Size in the shards", (f"{r.width}x{r.height}" for r in rows)),
        _counts("Codec of the sources", (row.codec for row in rows)),
        _counts("Container of the sources", (row.container for row in rows)),
        _counts("Pixel format of the sources", (row.pixel_format for row in rows)),
        _counts("Peculiar sources", (name for row in rows for name in _peculiarities(row))),
    ]
    return f'<h2>What the clips are</h2><div class="grid">{"".join(panels)}</div>'


def _peculiarities(row: SampleRow) -> Iterable[str]:
    if row.rotation:
        yield "rotated (turned upright)"
    if row.sample_aspect != 1.0:
        yield "pixels that are not square"
    if row.hdr:
        yield "HDR (not tone-mapped)"
    if row.copied:
        yield "kept byte for byte"


def _classes(found: Survey) -> str:
    counts = found.per_class()
    splits = list(found.manifest.splits)
    numbers = range(len(found.manifest.classes))
    notes = []
    for split in splits:
        sizes = sorted(counts[split][number] for number in numbers)
        if sizes:
            middle = sizes[len(sizes) // 2]
            notes.append(f"{split}: {sizes[0]:,} to {sizes[-1]:,} per class, median {middle:,}")
    largest = max((max(c.values(), default=0) for c in counts.values()), default=0) or 1
    rows = []
    for number, name in enumerate(found.manifest.classes):
        cells = "".join(
            f'<td class="n">{counts[split][number]:,}</td>'
            f'<td class="bars" style="width:{36 // len(splits)}%">'
            f"{_bar(counts[split][number] / largest)}</td>"
            for split in splits
        )
        rows.append(f'<tr><td class="n">{number}</td><td>{escape(name)}</td>{cells}</tr>')
    heads = "".join(f'<th class="n">{escape(split)}</th><th></th>' for split in splits)
    return (
        f"<h2>Classes</h2><p>{escape('; '.join(notes))}.</p>"
        f'<div class="panel scroll"><table><tr><th class="n">#</th><th>class</th>{heads}</tr>'
        f"{''.join(rows)}</table></div>"
    )


def _sheets(found: Survey, store: Store, chooser: random.Random) -> str:
    by_class: dict[int, list[Sample]] = {}
    for sample in found.samples:
        by_class.setdefault(sample.row.label, []).append(sample)
    labels = sorted(by_class)
    if len(labels) > _MAX_SHEETS:
        labels = sorted(chooser.sample(labels, _MAX_SHEETS))
    figures = []
    for label in labels:
        clips = chooser.sample(by_class[label], min(_CLIPS_PER_CLASS, len(by_class[label])))
        images = "".join(_strip(store, sample) for sample in clips)
        name = escape(_class_name(found, label))
        figures.append(f"<figure>{images}<figcaption>{name}</figcaption></figure>")
    note = (
        f"{STRIP_FRAMES} frames from first to last of up to {_CLIPS_PER_CLASS} random clips per "
        f"class; {len(labels)} of {len(by_class)} classes."
    )
    return f'<h2>Contact sheets</h2><p>{note}</p><div class="sheet">{"".join(figures)}</div>'


def _strip(store: Store, sample: Sample) -> str:
    with store.open(sample.shard) as tar:
        tar.seek(sample.row.offset)
        video = tar.read(sample.row.size)
    data = base64.b64encode(strip_jpeg(video)).decode()
    title = escape(f"{sample.split}: {sample.row.source}", quote=True)
    return f'<img src="data:image/jpeg;base64,{data}" alt="{title}" title="{title}">'


def _histogram(title: str, values: Sequence[float], bins: int = 24) -> str:
    low, high = min(values), max(values)
    if low == high:
        return _panel(title, f"<p>{low:g} for all {len(values):,} clips</p>")
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int((value - low) / (high - low) * bins))] += 1
    bars = "".join(
        f'<i style="height:{100 * count / max(counts):.1f}%" title="{count:,}"></i>'
        for count in counts
    )
    median = sorted(values)[len(values) // 2]
    axis = f"<span>{low:.4g}</span><span>median {median:.4g}</span><span>{high:.4g}</span>"
    return _panel(title, f'<div class="hist">{bars}</div><div class="axis">{axis}</div>')


def _counts(title: str, values: Iterable[str], top: int = 8) -> str:
    counts = Counter(values)
    if not counts:
        return _panel(title, "<p>none</p>")
    shown = counts.most_common(top)
    rest = sum(counts.values()) - sum(count for _, count in shown)
    if rest:
        shown.append((f"{len(counts) - top:,} others", rest))
    return _panel(title, _bars(shown, sum(counts.values())))


def _bars(counts: Sequence[tuple[str, int]], total: int) -> str:
    largest = max(count for _, count in counts)
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{count:,}</td>'
        f'<td class="n">{100 * count / total:.1f} %</td>'
        f'<td class="bars" style="width:30%">{_bar(count / largest)}</td></tr>'
        for name, count in counts
    )
    return f"<table>{rows}</table>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f'<div class="panel scroll"><table><tr>{head}</tr>{body}</table></div>'


def _bar(share: float) -> str:
    return f'<span class="bar" style="width:{100 * share:.1f}%"></span>'


def _clips(count: int) -> str:
    return "1 clip appears" if count == 1 else f"{count:,} clips appear"


def _shards(count: int) -> str:
    return "1 shard" if count == 1 else f"{count:,} shards"


def _cell(text: str) -> str:
    short = ' class="short"' if len(text) <= 40 else ""
    return f"<td{short}><code>{escape(text)}</code></td>"


def _panel(title: str, content: str) -> str:
    return f'<div class="panel"><h3>{escape(title)}</h3>{content}</div>'


def _class_name(found: Survey, label: int) -> str:
    return found.manifest.classes[label] if label >= 0 else "unlabelled"


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
