"""When a rank has hung: the stacks of all ranks on disk, a failure record, and an end.

Each rank watches itself. The first to lose patience leaves logs/hang. The first rank of each node
looks for it and tells the others of its node, who look themselves only rarely (`NodeBoard`), so
that the dumps show all ranks at the same moment: one of them is where it should not be, the rest
wait for it in a collective. A hung collective cannot be unwound, hence `os._exit`.

A hang that holds Python's interpreter lock stops this thread too; there, the time-out of the other
ranks' collectives ends the run, and SIGQUIT still shows the stack.
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
# On a dead file system even the last words may hang.
_LAST_WORDS_S = 30.0
_CALL = "call-for-stacks"


class Watchdog:
    """Use as a context manager around the life of a rank.

    Besides hangs, logs/stacks-rank00000.txt receives the stacks at SIGQUIT (the run goes on) and at
    the fatal signals, among them the abort by which NCCL ends a process.
    """

    def __init__(
        self,
        run_dir: Path,
        pulse: Pulse,
        config: HealthConfig,
        on_hang: Callable[[Failure], None],
        start_timeout_s: float = 0.0,
    ) -> None:
        """`on_hang` is called after the stacks are written and before the process ends.

        `start_timeout_s`: the patience until the first step is done, if that is longer.
        """
        self._run_dir = run_dir
        self._pulse = pulse
        self._timeout_s = config.hang_timeout_s
        self._poll_s = min(_LONGEST_POLL_S, (self._timeout_s or _LONGEST_POLL_S) / 4)
        self._board = NodeBoard(run_dir)
        # An open for each look. On a node, all but the first rank look as often as the first.
        look_s = self._board.period_s(self._poll_s, 1, share=0.25)
        self._look_s = look_s if self._board.is_first else look_s * self._board.local_ranks
        self._start_timeout_s = start_timeout_s
        self._on_hang = on_hang
        self._others_have_started = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._stacks_path = stacks_file(run_dir, pulse.rank)

    def __enter__(self) -> Watchdog:
        if self._pulse.rank == 0:  # from an earlier attempt
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
        """Call it when all ranks have started: logs/hang is from then on of this attempt."""
        self._others_have_started = True

    def _run(self) -> None:
        # Counted in polls, not by the clock: a process that was suspended has not hung.
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
        # A loader process looks whether its fork server lives, and that one whether we do, through
        # a pipe which the loader process holds as well: both would stay for ever.
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
        # The launcher ends the others when the first one is gone.
        first_look_s = self._board.period_s(self._poll_s, 1, share=0.25)
        time.sleep(min(2 * first_look_s, _LAST_WORDS_S - 5))


def call_for_stacks(run_dir: Path, caller: str) -> None:
    """Make every rank that still lives dump its stacks and end; the first call counts."""
    with suppress(OSError), hang_file(run_dir).open("x") as marker:
        marker.write(caller)


def _in_a_collective() -> bool:
    """Does the main thread wait for other ranks, rather than the others for it?"""
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
