"""metrics.jsonl: the record of a run that is always there, whatever the tracking server does."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.rundir import durable

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends one JSON object per line: `step`, `kind` ("train" or "eval"), `time`, the values."""

    def __init__(self, run_dir: Path, resume_step: int) -> None:
        """Rows after `resume_step`, logged by an attempt that died later, are dropped."""
        self.path = run_dir / METRICS_FILE
        if self.path.exists():
            kept = [row for row in read_metrics(run_dir) if row["step"] <= resume_step]
            durable.write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = self.path.open("a")

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> dict[str, Any]:
        """Append a row and return it."""
        row = {"step": step, "kind": kind, "time": time.time(), **values}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        return row

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All complete rows; a last line cut short by a kill is ignored."""
    rows = []
    for line in (run_dir / METRICS_FILE).read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
