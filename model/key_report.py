"""What became of every key when weights were fitted to a model."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Action = Literal["loaded", "renamed", "resized", "copied", "initialised", "dropped"]


@dataclass(frozen=True)
class KeyEntry:
    """One tensor's fate. source is None when the file had none, target when the model has none."""

    action: Action
    source: str | None
    target: str | None
    detail: str = ""


@dataclass
class KeyReport:
    """All entries in the order they were decided; `str(report)` is a table."""

    entries: list[KeyEntry] = field(default_factory=list)

    def add(self, action: Action, source: str | None, target: str | None, detail: str = "") -> None:
        self.entries.append(KeyEntry(action, source, target, detail))

    def count(self, action: Action) -> int:
        return sum(entry.action == action for entry in self.entries)

    def of(self, action: Action) -> list[KeyEntry]:
        return [entry for entry in self.entries if entry.action == action]

    def __str__(self) -> str:
        """One line per kind of key: layers that fare alike are folded into `layers.*`."""
        kinds = Counter(
            (entry.action, _fold(entry.source), _fold(entry.target), entry.detail)
            for entry in self.entries
        )
        rows = [("action", "keys", "source", "target", "how")]
        rows += [(a, str(n), source, target, how) for (a, source, target, how), n in kinds.items()]
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        totals = Counter(entry.action for entry in self.entries)
        lines.append(", ".join(f"{number} {action}" for action, number in totals.items()))
        return "\n".join(lines)


def _fold(key: str | None) -> str:
    return "-" if key is None else re.sub(r"^layers\.\d+\.", "layers.*.", key)
