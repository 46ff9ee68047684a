"""The ledger of nodes that failed a run, and the choice of nodes that a job can avoid."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from pipeline.rundir import durable, records
from pipeline.rundir.paths import NODE_LEDGER
from pipeline.rundir.records import Record


class Fault(Record):
    """The failure of a run on a node."""

    node: str
    run: str
    reason: str
    time: float = Field(default_factory=time.time)


def note_fault(runs_dir: Path, node: str, run: str, reason: str) -> None:
    """Record that a run failed on `node`."""
    records.append(runs_dir / NODE_LEDGER, Fault(node=node, run=run, reason=reason))


def faults(runs_dir: Path) -> list[Fault]:
    """The whole ledger, oldest first, without truncated lines."""
    return records.read_lines(runs_dir / NODE_LEDGER, Fault)


def faulty(runs_dir: Path, hours: float) -> list[str]:
    """Nodes with a fault in the last `hours`."""
    since = time.time() - hours * 3600
    return sorted({fault.node for fault in faults(runs_dir) if fault.time > since})


def forgive(runs_dir: Path, node: str) -> bool:
    """Remove the faults of a node from the ledger; return False when it has none."""
    known = faults(runs_dir)
    kept = [fault for fault in known if fault.node != node]
    if len(kept) < len(known):
        text = "".join(f"{fault.model_dump_json()}\n" for fault in kept)
        durable.write_text(runs_dir / NODE_LEDGER, text)
    return len(kept) < len(known)


def avoidable(candidates: Sequence[str], usable: Sequence[str], nodes: int) -> list[str]:
    """The candidates that can be excluded while `nodes` usable nodes remain."""
    spare = len(usable) - nodes
    return [node for node in candidates if node in usable][: max(0, spare)]
