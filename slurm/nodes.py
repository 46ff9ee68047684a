"""Which nodes failed a run lately, and which of them a job can do without."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

LEDGER = "bad_nodes.jsonl"
"""In the runs directory, for all its runs."""


def note_fault(runs_dir: Path, node: str, run: str, reason: str) -> None:
    """Remember that a run failed at `node`."""
    entry = {"node": node, "run": run, "reason": reason, "time": time.time()}
    with (runs_dir / LEDGER).open("a") as file:
        file.write(json.dumps(entry) + "\n")


def faulty(runs_dir: Path, hours: float) -> list[str]:
    """Nodes with a fault in the last `hours`."""
    path = runs_dir / LEDGER
    since = time.time() - hours * 3600
    entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return sorted({entry["node"] for entry in entries if entry["time"] > since})


def forgive(runs_dir: Path, node: str) -> bool:
    """Forget the faults of a node; False when it has none."""
    path = runs_dir / LEDGER
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if json.loads(line)["node"] != node]
    path.write_text("".join(f"{line}\n" for line in kept))
    return len(kept) < len(lines)


def avoidable(candidates: Sequence[str], usable: Sequence[str], nodes: int) -> list[str]:
    """Those of the candidates that can be excluded and still leave `nodes` usable ones."""
    spare = len(usable) - nodes
    return [node for node in candidates if node in usable][: max(0, spare)]
