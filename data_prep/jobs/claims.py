"""Which job works on which shard, over one shared directory and without a server.

A claim is a file that only one job can create. Its owner keeps touching it; when the touches stop,
the next generation of the claim is up for creation, again by one job only. Nothing is deleted, so
there is no moment at which two jobs could both believe that they took over.

Should a job that was thought dead finish after all, both have written the same bytes.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

HEARTBEAT_S = 10.0
STALE_S = 120.0


@dataclass(frozen=True, slots=True)
class Claim:
    shard: str
    generation: int


class Claims:
    """The claims of one job. Use as a context manager: a thread keeps them alive meanwhile."""

    def __init__(self, directory: Path, *, stale_s: float = STALE_S) -> None:
        self._directory = directory
        self._stale_s = stale_s
        process = psutil.Process()
        self.owner = uuid.uuid4().hex[:12]
        self._identity = {
            "owner": self.owner,
            "host": socket.gethostname(),
            "pid": process.pid,
            "started": process.create_time(),
        }
        self._held: set[Path] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="claims")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for path in self._held:
            path.unlink(missing_ok=True)

    def take(self, shard: str) -> Claim | None:
        """None while another live job holds the shard."""
        generation = self._latest(shard)
        if generation is not None and self._is_alive(self._path(shard, generation)):
            return None
        claim = Claim(shard, 0 if generation is None else generation + 1)
        path = self._path(shard, claim.generation)
        # Created whole under another name first: nobody can read half an owner.
        temporary = self._directory / f".{uuid.uuid4().hex}.tmp"
        temporary.write_text(json.dumps(self._identity))
        try:
            os.link(temporary, path)
        except FileExistsError:
            return None
        finally:
            temporary.unlink()
        self._held.add(path)
        return claim

    def release(self, claim: Claim) -> None:
        path = self._path(claim.shard, claim.generation)
        self._held.discard(path)
        path.unlink(missing_ok=True)

    def _latest(self, shard: str) -> int | None:
        prefix = f"{shard}."
        found = [
            int(name.removeprefix(prefix))
            for name in os.listdir(self._directory)
            if name.startswith(prefix)
        ]
        return max(found, default=None)

    def _is_alive(self, path: Path) -> bool:
        try:
            identity = _read_identity(path)
            touched = path.stat().st_mtime
        except FileNotFoundError:
            return False
        if identity.get("host") == socket.gethostname():
            return _is_running(identity["pid"], identity["started"])
        return self._now() - touched < self._stale_s

    def _now(self) -> float:
        """The file server's clock: hosts need not agree on the time."""
        probe = self._directory / f".{self.owner}.clock"
        probe.touch()
        return probe.stat().st_mtime

    def _beat(self) -> None:
        while not self._stop.wait(min(HEARTBEAT_S, self._stale_s / 4)):
            for path in tuple(self._held):
                try:
                    os.utime(path)
                except FileNotFoundError:
                    continue  # released in between

    def _path(self, shard: str, generation: int) -> Path:
        return self._directory / f"{shard}.{generation}"


def _read_identity(path: Path) -> dict[str, Any]:
    """{} for a file that a full disk or a crash has emptied: its touches still tell."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_running(pid: int, started: float) -> bool:
    try:
        found: float = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return False
    return abs(found - started) < 1.0


def clear(directory: Path) -> None:
    """Forget all claims; for a directory that nobody works on."""
    for path in directory.iterdir():
        path.unlink(missing_ok=True)
