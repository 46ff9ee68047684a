"""logs/rank00000.json: where a rank was started, and how it left; one without a word was killed."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from slurm import files, queue


def node_name() -> str:
    """What SLURM calls this machine, else its host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def attempt_id() -> str:
    """The job and how often it was requeued: another one for each attempt."""
    return f"{queue.own_job_id()}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"


@dataclass(frozen=True)
class Mark:
    """One rank of one attempt."""

    rank: int
    node: str
    attempt: str
    status: int | None = None
    """Exit status once the rank has left by itself."""

    def write(self, run_dir: Path) -> None:
        path = run_dir / "logs" / f"rank{self.rank:05d}.json"
        files.replace(path, json.dumps(asdict(self)))

    def left(self, run_dir: Path, status: int) -> None:
        """The rank ends by itself."""
        replace(self, status=status).write(run_dir)


def read(run_dir: Path, attempt: str) -> Iterator[Mark]:
    """The ranks of an attempt, in their order, without those whose mark is cut short."""
    for path in sorted((run_dir / "logs").glob("rank*.json")):
        content = files.read_object(path)
        if content is not None and content.get("attempt") == attempt:
            yield Mark(**content)
