"""metrics.jsonl: the metrics of a run, kept whether or not the tracking server works."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.rundir import durable, records
from pipeline.rundir.paths import METRICS_FILE

logger = logging.getLogger(__name__)


class _Row(BaseModel):
    """Schema of a row, checked here so that readers need not check values again."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, int | float]

    step: int
    kind: str
    time: float


class MetricsLog:
    """Writer of rows: a JSON object a line with `step`, `kind` (train or eval), `time`, values."""

    def __init__(self, run_dir: Path, resume_step: int) -> None:
        """Open the log and drop the rows after `resume_step`, which a dead attempt wrote."""
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
    """Return all rows, oldest first; [] when there is no such file.

    Lines that are not rows are left out, and a warning counts them. The last line is not counted,
    because a kill can cut it short.
    """
    rows: list[dict[str, Any]] = []
    path = run_dir / METRICS_FILE
    lines = records.lines(path)
    bad = 0
    for number, line in enumerate(lines, 1):
        try:
            rows.append(_Row.model_validate_json(line).model_dump())
        except ValidationError:
            bad += number < len(lines)
    if bad:
        logger.warning("%s: %d lines are no rows of metrics and are left out", path, bad)
    return rows
