"""Assigns shards to jobs through a shared directory, without a server.

A claim is a file that only one job can create. Its owner keeps touching it. When the touches stop,
any job may create the next generation of the claim, and again only one job can. A stale claim is
not deleted, so two jobs can never both believe that they took it over.

If a job that was thought dead finishes after all, both jobs have written the same bytes.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

HEARTBEAT_S = 10.0
STALE_S = 120.0


@dataclass(frozen=True, slots=True)
class Claim:
    shard: str
    generation: int


class Claims:
    """The claims of one job: a context manager in which a thread keeps them alive."""

    def __init__(self, directory: Path, *, stale_s: float = STALE_S) -> None:
        self._directory = directory
        self._stale_s = stale_s
        self.owner = uuid.uuid4().hex[:12]
        self._identity = {
            "owner": self.owner,
            "host": socket.gethostname(),
            **_process(os.getpid()),
        }
        self._held: set[Path] = set()
        self._watched: dict[Path, tuple[float, float]] = {}
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
        """Claim a shard; return None while another live job holds it."""
        generation = self._latest(shard)
        if generation is not None and self._is_alive(self._path(shard, generation)):
            return None
        claim = Claim(shard, 0 if generation is None else generation + 1)
        path = self._path(shard, claim.generation)
        # The file is completed under another name first, so that nobody reads half an owner.
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

    def holds(self, claim: Claim) -> bool:
        """Whether this job still holds a claim; another takes it over from a suspended job."""
        return self._latest(claim.shard) == claim.generation

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
        if _is_of_this_system(identity):
            return _is_running(identity)
        return self._now() - touched < self._stale_s and self._is_touched(path, touched)

    def _is_touched(self, path: Path, touched: float) -> bool:
        """Whether touches still arrive, by our clock: after a step back, old touches look new."""
        now = time.monotonic()
        seen, since = self._watched.get(path, (touched, now))
        self._watched[path] = (touched, since if seen == touched else now)
        return now - self._watched[path][1] < self._stale_s

    def _now(self) -> float:
        """The time by the file server's clock, because hosts may disagree on the time."""
        probe = self._directory / f".{self.owner}.clock"
        probe.touch()
        return probe.stat().st_mtime

    def _beat(self) -> None:
        while not self._stop.wait(min(HEARTBEAT_S, self._stale_s / 4)):
            for path in tuple(self._held):
                try:
                    os.utime(path)
                except OSError:
                    continue  # released meanwhile, or a disk error; the next touch counts

    def _path(self, shard: str, generation: int) -> Path:
        return self._directory / f"{shard}.{generation}"


def _read_identity(path: Path) -> dict[str, Any]:
    """The owner of a claim; {} for a file that a crash emptied, whose touches still count."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _process(pid: int) -> dict[str, Any]:
    """The identity of a process, which no change of the wall clock affects.

    Raises `FileNotFoundError` when there is no such process.
    """
    # The name in parentheses may hold anything. The 22nd field is the start in ticks since boot.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return {"pid": pid, "started": int(fields[19]), **_system()}


def _system() -> dict[str, str]:
    """The boot and the namespace in which a process number is valid."""
    return {
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "namespace": os.readlink("/proc/self/ns/pid"),
    }


def _is_of_this_system(identity: dict[str, Any]) -> bool:
    here = {"host": socket.gethostname(), **_system()}
    return all(identity.get(name) == value for name, value in here.items())


def _is_running(identity: dict[str, Any]) -> bool:
    try:
        found = _process(identity["pid"])
    except (FileNotFoundError, ProcessLookupError):
        return False
    return bool(found["started"] == identity["started"])


def clear(directory: Path) -> None:
    """Remove all claims from a directory on which no job works."""
    for path in directory.iterdir():
        path.unlink(missing_ok=True)
