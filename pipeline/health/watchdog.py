"""The watchdog of a rank, which ends a hung run and leaves the stacks of all ranks on disk.

Each rank watches itself. The first whose time is up creates logs/hang. The first rank of each node
looks for that file and tells the others of its node, which look for themselves less often
(`NodeBoard`). The dumps then show all ranks at about the same moment: the rank that hangs, and the
others, which wait for it in a collective. Nothing can unwind a hung collective, so the process ends
with `os._exit`.

A hang that holds Python's interpreter lock stops the watchdog too. The time-out of the other ranks'
collectives then ends the run, and SIGQUIT still shows the stack.
"""

from __future__ import annotations

import faulthandler
import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

from pipeline import exits
from pipeline.errors import HangError
from pipeline.health.config import HealthConfig
from pipeline.health.failure import record_failure
from pipeline.health.node_board import NodeBoard
from pipeline.health.pulse import Pulse
from pipeline.rundir import Failure
from pipeline.rundir.paths import hang_file, stacks_file

logger = logging.getLogger(__name__)

_LONGEST_POLL_S = 1.0
# Writing the report can itself hang on a dead file system, so it gets this much time.
_LAST_WORDS_S = 30.0
_CALL = "call-for-stacks"


class Watchdog:
    """Context manager around the life of a rank.

    logs/stacks-rank00000.txt receives the stacks of a hang. It also receives them at SIGQUIT, after
    which the run goes on, and at fatal signals, such as the abort by which NCCL ends a process.
    """

    def __init__(
        self,
        run_dir: Path,
        pulse: Pulse,
        config: HealthConfig,
        on_hang: Callable[[Failure], None],
        start_timeout_s: float = 0.0,
    ) -> None:
        """Set up the watchdog.

        Args:
            on_hang: called after the stacks are written and before the process ends.
            start_timeout_s: time limit until the first step is done, used if it is longer than
                `config.hang_timeout_s`.
        """
        self._run_dir = run_dir
        self._pulse = pulse
        self._timeout_s = config.hang_timeout_s
        self._poll_s = min(_LONGEST_POLL_S, (self._timeout_s or _LONGEST_POLL_S) / 4)
        self._board = NodeBoard(run_dir)
        # Each look costs one open. The other ranks of a node together look as often as its first.
        look_s = self._board.period_s(self._poll_s, 1, share=0.25)
        self._look_s = look_s if self._board.is_first else look_s * self._board.local_ranks
        self._start_timeout_s = start_timeout_s
        self._on_hang = on_hang
        self._others_have_started = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._stacks_path = stacks_file(run_dir, pulse.rank)

    def __enter__(self) -> Watchdog:
        if self._pulse.rank == 0:  # an earlier attempt may have left the file
            hang_file(self._run_dir).unlink(missing_ok=True)
        if self._board.is_first:
            self._board.forget(_CALL)
        self._stacks: TextIO = self._stacks_path.open("a")
        self._faulthandler_was_on = faulthandler.is_enabled()
        faulthandler.enable(self._stacks)
        faulthandler.register(signal.SIGQUIT, self._stacks)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._board.leave()
        faulthandler.unregister(signal.SIGQUIT)
        faulthandler.disable()
        if self._faulthandler_was_on:
            faulthandler.enable()
        self._stacks.close()

    def heed_others(self) -> None:
        """Start to obey logs/hang. Call this once all ranks have started.

        By then rank 0 has deleted the file of an earlier attempt.
        """
        self._others_have_started = True

    def _run(self) -> None:
        # Time is counted in polls and not by the clock, as a suspended process has not hung.
        seen, idle_s, until_look_s = -1, 0.0, 0.0
        while not self._stop.wait(self._poll_s):
            idle_s = idle_s + self._poll_s if self._pulse.beats == seen else 0.0
            seen = self._pulse.beats
            if idle_s >= self._patience_s():
                self._end(f"no progress for {idle_s:.0f} s (health.hang_timeout_s)")
            until_look_s -= self._poll_s
            call = self._board.get(_CALL)
            if not call and until_look_s <= 0:
                until_look_s = self._look_s
                call = _read(hang_file(self._run_dir))
            if self._others_have_started and call:
                self._board.put(_CALL, call)
                self._end(f"asked for its stack by {call}")

    def _patience_s(self) -> float:
        if self._timeout_s is None:
            return math.inf
        if self._pulse.is_warm:
            return self._timeout_s
        return max(self._timeout_s, self._start_timeout_s)

    def _end(self, reason: str) -> None:
        last_words = threading.Thread(target=self._report, args=(reason,), daemon=True)
        last_words.start()
        last_words.join(_LAST_WORDS_S)
        # The fork server of the loader processes ends when the pipe from this process closes, but
        # the loader processes hold that pipe open too. Killing them lets the fork server end.
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(exits.FAILED)

    def _report(self, reason: str) -> None:
        pulse = self._pulse
        text = f"{reason}; phase {pulse.phase}, step {pulse.step}"
        caller = f"rank {pulse.rank} on {pulse.host}: {text}"
        self._board.put(_CALL, caller)
        call_for_stacks(self._run_dir, caller)
        with suppress(OSError):
            self._stacks.write(f"\n{datetime.now().isoformat(timespec='seconds')} {text}\n")
            self._stacks.flush()
            faulthandler.dump_traceback(self._stacks)
        error = HangError(f"{text}; see {self._stacks_path.parent}/stacks-rank*.txt")
        logger.error("%s", error)
        failure = record_failure(self._run_dir, pulse.rank, error, consequence=_in_a_collective())
        self._on_hang(failure)
        # The launcher ends all ranks once one has ended, so this rank waits for the others' dumps.
        first_look_s = self._board.period_s(self._poll_s, 1, share=0.25)
        time.sleep(min(2 * first_look_s, _LAST_WORDS_S - 5))


def call_for_stacks(run_dir: Path, caller: str) -> None:
    """Ask every live rank to dump its stacks and end. Only the first call has an effect."""
    with suppress(OSError), hang_file(run_dir).open("x") as marker:
        marker.write(caller)


def _in_a_collective() -> bool:
    """Return whether the main thread is waiting for other ranks in a collective."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if frame.f_code.co_filename.endswith("distributed/distributed_c10d.py"):
            return True
        frame = frame.f_back
    return False


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
