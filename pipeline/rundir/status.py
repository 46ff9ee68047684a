"""status.json: what a run is doing, or how it ended."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.rundir import durable
from pipeline.rundir.attempts import attempt_id
from pipeline.rundir.paths import STATUS_FILE


def write_status(run_dir: Path, state: str, **details: Any) -> None:
    """What the run is doing or how it ended: running, finished, stopped, cancelled or failed."""
    content = {
        "state": state,
        "pid": os.getpid(),
        "attempt": attempt_id(),
        "updated": datetime.now(UTC).isoformat(timespec="seconds"),
        **details,
    }
    durable.write_json(run_dir / STATUS_FILE, content)


def read_status(run_dir: Path) -> dict[str, Any]:
    """The last status; {} before the first, the state "unreadable" when it is cut short."""
    path = run_dir / STATUS_FILE
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        content = None
    return content if isinstance(content, dict) else {"state": "unreadable"}
