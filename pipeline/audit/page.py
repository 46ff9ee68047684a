"""One self-contained HTML page about an audit; Jinja escapes every value."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from pipeline.audit.result import Audit
from pipeline.rundir import durable


def write_page(audit: Audit, path: Path) -> None:
    """Write the page. Raises OSError when the path cannot be written."""
    jinja = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    jinja.filters["thousands"] = "{:,}".format
    template = jinja.from_string(files(__package__).joinpath("page.html").read_text())
    durable.write_text(path, template.render(audit=audit))
