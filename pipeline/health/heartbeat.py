"""The thread that writes a rank's heartbeat for readers outside the job.

The first rank of a node writes the heartbeats of all ranks there, every two seconds in a small run
and less often in a large one (`NodeBoard.period_s`). The other ranks pass theirs to it through the
node's own disk.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from pipeline.health.node_board import NodeBoard
from pipeline.health.pulse import Pulse
from pipeline.rundir import Heartbeat, Phase

EVERY_S = 2.0
# Writing a heartbeat takes a create, a write and a rename.
_OPERATIONS = 3
_ROW = "beat-"


class HeartbeatWriter:
    """Context manager around the life of a rank; its last heartbeat has the phase "end"."""

    def __init__(self, run_dir: Path, pulse: Pulse, every_s: float = EVERY_S) -> None:
        self._run_dir = run_dir
        self._pulse = pulse
        self._board = NodeBoard(run_dir)
        self._every_s = every_s
        if self._board.is_first:
            self._every_s = self._board.period_s(every_s, _OPERATIONS, share=0.5)
        self._others: dict[int, Heartbeat] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> HeartbeatWriter:
        if self._board.is_first:
            self._board.forget(_ROW)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._pulse.enter(Phase.END)
        self._stop.set()
        self._thread.join(timeout=EVERY_S)  # a dead file system must not delay the end
        self._board.leave()

    def _run(self) -> None:
        while True:
            self._write()
            if self._stop.wait(self._every_s):
                break
        self._write()

    def _write(self) -> None:
        pulse = self._pulse
        beat = Heartbeat(
            rank=pulse.rank,
            host=pulse.host,
            pid=pulse.pid,
            phase=pulse.phase,
            step=pulse.step,
            total_steps=pulse.total_steps,
            step_s=pulse.step_s(),
            time=time.time(),
        )
        if not self._board.is_first:
            self._board.put(f"{_ROW}{pulse.rank}", beat.model_dump_json())
            return
        for text in self._board.texts(_ROW):
            with suppress(ValidationError):
                other = Heartbeat.model_validate_json(text)
                self._others[other.rank] = other
        others = tuple(self._others[rank] for rank in sorted(self._others))
        beat.model_copy(update={"others": others}).write(self._run_dir)
