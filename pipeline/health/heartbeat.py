"""The thread that leaves a rank's sign of life every two seconds, for readers outside the job."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from pipeline.health.pulse import Pulse
from pipeline.rundir import Heartbeat, Phase

EVERY_S = 2.0


class HeartbeatWriter:
    """Use as a context manager around the life of a rank; its last word is the phase "end"."""

    def __init__(self, run_dir: Path, pulse: Pulse, every_s: float = EVERY_S) -> None:
        self._run_dir = run_dir
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
        Heartbeat(
            rank=pulse.rank,
            host=pulse.host,
            pid=pulse.pid,
            phase=pulse.phase,
            step=pulse.step,
            total_steps=pulse.total_steps,
            step_s=pulse.step_s(),
            time=time.time(),
        ).write(self._run_dir)
