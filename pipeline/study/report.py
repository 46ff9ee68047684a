"""From finished units to what is committed: results as JSON, figures, tables in the docs."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_prep.durable import publish
from pipeline.errors import ConfigError
from pipeline.study.plots import draw
from pipeline.study.store import Store, read_design
from pipeline.study.summary import Results, Summary
from pipeline.study.tables import tables

RESULTS_NAME = "study-ablation.json"
_DIGITS = 4
"""Significant digits of published figures."""


def load_results(source: Path) -> Results:
    """Read a study's directory, or the JSON file that a report wrote.

    Figures are rounded, so both give the same report. Raises ConfigError.
    """
    if source.is_dir():
        design = read_design(source)
        dumped = [r.model_dump(mode="json") for r in Store(source, design).results()]
        return Results.model_validate({"design": design, "results": _rounded(dumped)})
    try:
        return Results.model_validate_json(source.read_text())
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read ({error.strerror})") from None
    except ValidationError:
        raise ConfigError(f"{source}: is not the JSON file of a study's report") from None


def write_report(source: Path, out: Path, page: Path | None) -> list[Path]:
    """Write results into `out`, tables into `page`, figures beside it, and return all paths.

    Without a page, the figures are written into `out`.
    Raises ConfigError when the source holds no finished unit, or the page lacks a section.
    """
    results = load_results(source)
    if not results.results:
        raise ConfigError(f"{source}: no unit has finished yet; wait, or run the study")
    summary = Summary(results.design, results.results)
    text = None if page is None else filled(_read(page), tables(summary), page)
    out.mkdir(parents=True, exist_ok=True)
    written = out / RESULTS_NAME
    publish(written, _as_lines(results).encode())
    paths = [written, *draw(summary, out if page is None else page.parent)]
    if page is not None and text is not None:
        publish(page, text.encode())
        paths.append(page)
    return paths


def filled(text: str, sections: dict[str, str], page: Path) -> str:
    """Replace what stands between `<!-- study: NAME -->` and `<!-- end -->` for every NAME."""
    for name, content in sections.items():
        pattern = re.compile(rf"(<!-- study: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise ConfigError(f"{page}: has no section <!-- study: {name} --> ... <!-- end -->")
        text = pattern.sub(partial(_between, content), text)
    return text


def _between(content: str, found: re.Match[str]) -> str:
    return f"{found[1]}{content}\n{found[2]}"


def _read(page: Path) -> str:
    try:
        return page.read_text()
    except OSError as error:
        raise ConfigError(f"{page}: cannot be read ({error.strerror})") from None


def _as_lines(results: Results) -> str:
    """JSON with one line per unit, so that a diff shows which units changed."""
    dumped = results.model_dump(mode="json")
    units = ",\n".join(json.dumps(result) for result in dumped["results"])
    return f'{{"design": {json.dumps(dumped["design"])},\n"results": [\n{units}\n]}}\n'


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value
