"""A sign of life of every rank, on disk for people and tools outside of the job.

logs/heartbeat-rank00000.json is replaced every two seconds by a thread. It is telemetry: not synced
to the disk, and a write that fails is made up for by the next one.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.health.pulse import Phase, Pulse

EVERY_S = 2.0


class Heartbeat(BaseModel):
    """What one rank was doing at `time`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rank: int
    host: str
    pid: int
    phase: Phase
    step: int
    """Optimizer steps done."""
    total_steps: int
    """0 until the data is open."""
    step_s: float | None
    """Median of the last 100 steps; None before the first."""
    time: float
    """Seconds since the epoch, by the clock of `host`."""


class HeartbeatWriter:
    """Use as a context manager around the life of a rank; its last word is the phase "end"."""

    def __init__(self, run_dir: Path, pulse: Pulse, every_s: float = EVERY_S) -> None:
        self._path = _path(run_dir, pulse.rank)
        self._pulse = pulse
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> HeartbeatWriter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._pulse.enter(Phase.END)
        self._stop.set()
        self._thread.join(timeout=self._every_s)  # a dead file system must not hold up the end

    def _run(self) -> None:
        while True:
            self._write()
            if self._stop.wait(self._every_s):
                break
        self._write()

    def _write(self) -> None:
        pulse = self._pulse
        heartbeat = Heartbeat(
            rank=pulse.rank,
            host=pulse.host,
            pid=pulse.pid,
            phase=pulse.phase,
            step=pulse.step,
            total_steps=pulse.total_steps,
            step_s=pulse.step_s(),
            time=time.time(),
        )
        temporary = self._path.with_suffix(f".{pulse.pid}.tmp")
        with suppress(OSError):
            temporary.write_text(heartbeat.model_dump_json())
            temporary.rename(self._path)


def read_heartbeats(run_dir: Path) -> list[Heartbeat]:
    """The newest of every rank, in the order of the ranks; [] before the first.

    A dead rank leaves its last one: compare `time` with the clock.
    """
    found = []
    for path in sorted((run_dir / "logs").glob("heartbeat-rank*.json")):
        with suppress(OSError, ValidationError):
            found.append(Heartbeat.model_validate_json(path.read_bytes()))
    return found


def forget_heartbeats(run_dir: Path, from_rank: int) -> None:
    """Those of an earlier attempt that had more ranks."""
    for heartbeat in read_heartbeats(run_dir):
        if heartbeat.rank >= from_rank:
            _path(run_dir, heartbeat.rank).unlink(missing_ok=True)


def _path(run_dir: Path, rank: int) -> Path:
    return run_dir / "logs" / f"heartbeat-rank{rank:05d}.json"
