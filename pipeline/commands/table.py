"""Lists as tables: framed and folded to the width of a terminal, one line a row for a program."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_UNBOUNDED = 100_000


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns that line up; where the output is no terminal no cell is cut or folded."""
    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False)
    for name in header:
        table.add_column(name, overflow="fold", no_wrap=not console.is_terminal)
    for row in rows:
        # As plain text: a reason may hold brackets, which are no markup of ours.
        table.add_row(*map(Text, row))
    if not console.is_terminal:
        wide = Console(highlight=False, width=_UNBOUNDED)
        console = Console(highlight=False, width=wide.measure(table).maximum)
    console.print(table)
