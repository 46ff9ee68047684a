"""What failed ranks have left, as `pipeline.health.failure` writes it, for those without torch."""

from __future__ import annotations

import json
import time
import traceback
from pathlib import Path
from typing import Any

from slurm import files, marks


def first(run_dir: Path, attempt: str) -> dict[str, Any] | None:
    """The failure of an attempt that caused the others: the earliest that is no consequence."""
    found = []
    for path in (run_dir / "logs").glob("failure-rank*.json"):
        failure = files.read_object(path)
        if failure is not None:
            found.append(failure)
    mine = [failure for failure in found if failure["attempt"] == attempt]
    return min(mine, key=lambda f: (f["consequence"], f["time"]), default=None)


def record_crash(run_dir: Path, mark: marks.Mark, error: Exception) -> None:
    """A rank that failed before or after `pipeline.train` could say so itself."""
    failure = {
        "stop_class": "crash",
        "error": " ".join(f"{type(error).__name__}: {error}".split()),
        "rank": mark.rank,
        "host": mark.node,
        "time": time.time(),
        "attempt": mark.attempt,
        "consequence": False,
        "traceback": "".join(traceback.format_exception(error)),
    }
    path = run_dir / "logs" / f"failure-rank{mark.rank:05d}.json"
    files.replace(path, json.dumps(failure, indent=1))
