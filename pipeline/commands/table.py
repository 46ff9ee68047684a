"""Printing of lists as tables that people and programs can read: one line a row, no cell cut."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.terminal import one_line, say

_UNBOUNDED = 100_000


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns, and let a terminal that is too narrow wrap the lines.

    Eleven columns folded into a terminal's width could be neither read nor copied.
    """
    table = Table(*header, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        # Cells are plain text, because rich would read brackets in a reason as markup.
        table.add_row(*(Text(one_line(cell)) for cell in row))
    text = io.StringIO()
    Console(file=text, width=_UNBOUNDED, color_system=None, force_terminal=False).print(table)
    for line in text.getvalue().splitlines():
        say(line.rstrip())
