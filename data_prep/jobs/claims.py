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
    """The claims of one job. Use as a context manager: a thread keeps them alive meanwhile."""

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

    def holds(self, claim: Claim) -> bool:
        """False when another job took over while this one was suspended."""
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
        """By our own watch: after a step back of the wall clock, old touches lie in the future."""
        now = time.monotonic()
        seen, since = self._watched.get(path, (touched, now))
        self._watched[path] = (touched, since if seen == touched else now)
        return now - self._watched[path][1] < self._stale_s

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
                except OSError:
                    continue  # released in between; or the disk has hiccups, and the next counts

    def _path(self, shard: str, generation: int) -> Path:
        return self._directory / f"{shard}.{generation}"


def _read_identity(path: Path) -> dict[str, Any]:
    """{} for a file that a full disk or a crash has emptied: its touches still tell."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _process(pid: int) -> dict[str, Any]:
    """What tells a process from all others, whatever becomes of the wall clock.

    Raises `FileNotFoundError` when there is none.
    """
    # The name in parentheses may hold anything; the start is the 22nd field, in ticks since boot.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return {"pid": pid, "started": int(fields[19]), **_system()}


def _system() -> dict[str, str]:
    """The boot and the name space in which process numbers mean something."""
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
    """Forget all claims; for a directory that nobody works on."""
    for path in directory.iterdir():
        path.unlink(missing_ok=True)
