"""A pool of processes that prepare clips and may be killed at any time.

A file that crashes its process or exceeds the caps costs that process and nothing else: the file is
rejected, and another process takes over. One process serves many files.

Faults of the machine are no verdict on a file. A process that is killed from outside (for lack of
memory) or stands still (for a slow disk) is replaced and its file tried again. After a few
attempts, or if a process does not start, everything stops with `MachineTrouble`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import IO, Generic, Self, TypeVar

import psutil
from pydantic import BaseModel, ConfigDict, Field

from data_prep.errors import MachineTrouble
from data_prep.jobs.child import READY
from data_prep.video.clip import ClipRequest, PreparedClip, ProbeRequest, RejectedClip, Trouble

T = TypeVar("T")
_QUEUE_PER_CHILD = 2  # a process has its next request before its last answer is read
_WINDOW_PER_CHILD = 8  # answers wait here until the earlier ones arrive
_LOOK_S = 1.0
_PAUSES_S = (0.5, 3.0)  # waits before the second and third try of a file
_FROM_OUTSIDE = frozenset(
    {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGKILL,
        signal.SIGTERM,
        signal.SIGXCPU,
        signal.SIGXFSZ,
    }
)


class Caps(BaseModel):
    """Limits on the cost of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout_s: float = Field(default=300.0, gt=0)
    """Limit on processor time, which does not depend on the load of the machine."""
    stall_s: float = Field(default=900.0, gt=0)
    """Time without processor use after which a process is replaced; the file is not rejected."""
    memory_gib: float = Field(default=4.0, gt=0)
    """Address space of a decoding process beyond that at its start."""


@dataclass(slots=True)
class _Job(Generic[T]):
    ticket: int
    tag: T
    request: ClipRequest | ProbeRequest
    crashed_before: bool = False
    troubles: int = 0


@dataclass(slots=True)
class _Child(Generic[T]):
    process: subprocess.Popen[bytes]
    connection: Connection
    stderr: IO[bytes]
    jobs: deque[_Job[T]] = field(default_factory=deque)
    ready: bool = False
    processor_s: float = 0.0
    """Processor time at the last look."""
    seen: float = field(default_factory=time.monotonic)
    still_s: float = 0.0
    """Observed time since the process last used the processor."""


class ClipPool(Generic[T]):
    """A pool of `size` child processes: a context manager for use by one thread."""

    def __init__(self, size: int, caps: Caps) -> None:
        self._caps = caps
        self._children = [self._start() for _ in range(size)]
        self._retries: deque[_Job[T]] = deque()
        self._done: dict[int, tuple[T, PreparedClip | RejectedClip]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            self._stop(child)

    def map(
        self, requests: Iterable[tuple[T, ClipRequest | ProbeRequest]]
    ) -> Iterator[tuple[T, PreparedClip | RejectedClip]]:
        """Yield answers in the order of the requests, which are drawn as places become free."""
        source = enumerate(requests)
        window = _WINDOW_PER_CHILD * len(self._children)
        drawn, emitted, exhausted = 0, 0, False
        while not exhausted or emitted < drawn:
            while not exhausted and drawn - emitted < window and self._has_room():
                item = next(source, None)
                if item is None:
                    exhausted = True
                    break
                ticket, (tag, request) = item
                self._submit(_Job(ticket, tag, request))
                drawn += 1
            if emitted < drawn and emitted not in self._done:
                self._collect()
            while emitted in self._done:
                yield self._done.pop(emitted)
                emitted += 1

    def _has_room(self) -> bool:
        return not self._retries and any(len(c.jobs) < _QUEUE_PER_CHILD for c in self._children)

    def _submit(self, job: _Job[T]) -> None:
        child = min(self._children, key=lambda c: len(c.jobs))
        child.jobs.append(job)
        try:
            child.connection.send(job.request)
        except (BrokenPipeError, ConnectionResetError):
            return  # the next collection notices the death and saves the jobs

    def _collect(self) -> None:
        """Wait for a message or a death, or until the next check for stalls."""
        while self._retries and self._room_for_retry():
            self._submit(self._retries.popleft())
        busy = [child for child in self._children if child.jobs]
        ready = set(wait([child.connection for child in busy], timeout=_LOOK_S))
        for child in busy:
            if child.connection in ready:
                self._receive(child)
            elif self._stands_still(child):
                detail = f"its process stood still for {self._caps.stall_s:g} s"
                self._try_again(child, detail)

    def _stands_still(self, child: _Child[T]) -> bool:
        now = time.monotonic()
        try:
            times = psutil.Process(child.process.pid).cpu_times()
        except psutil.NoSuchProcess:
            return False  # the next collection receives the death
        used = times.user + times.system
        # Time during which this process itself was suspended does not count.
        child.still_s += min(now - child.seen, 2 * _LOOK_S)
        if used > child.processor_s:
            child.still_s = 0.0
        child.processor_s, child.seen = used, now
        return child.still_s > self._caps.stall_s

    def _room_for_retry(self) -> bool:
        return any(not child.jobs for child in self._children)

    def _receive(self, child: _Child[T]) -> None:
        try:
            answer = child.connection.recv()
        except (EOFError, OSError):  # OSError: death in the middle of an answer
            self._handle_death(child)
            return
        child.still_s = 0.0
        if answer == READY:
            child.ready = True
        elif isinstance(answer, Trouble):
            self._try_again(child, answer.detail)
        elif _is_out_of_memory(answer) and self._memory_is_short():
            self._try_again(child, "it needs memory that this machine does not have now")
        else:
            job = child.jobs.popleft()
            self._done[job.ticket] = (job.tag, answer)

    def _memory_is_short(self) -> bool:
        available: int = psutil.virtual_memory().available
        return available < self._caps.memory_gib * 2**30

    def _handle_death(self, child: _Child[T]) -> None:
        status = child.process.wait()
        words = self._last_words(child)
        if not child.ready:
            raise MachineTrouble(f"a decoding process does not start (status {status}){words}")
        first = child.jobs[0]
        if status == -signal.SIGPROF:
            detail = f"over {self._caps.timeout_s:g} s of processor time"
            self._reject_first(child, "timeout", detail)
        elif -status in _FROM_OUTSIDE:
            name = signal.Signals(-status).name
            self._try_again(child, f"its process was killed from outside ({name}; out of memory?)")
        elif first.crashed_before:
            detail = f"the decoder died twice (status {status}){words}"
            self._reject_first(child, "crash", detail)
        else:
            # One crash may be the fault of the machine, so the file gets a second process.
            first.crashed_before = True
            self._replace(child)

    def _try_again(self, child: _Child[T], detail: str) -> None:
        """Retry a file in a new process after a pause; raise `MachineTrouble` after three tries."""
        first = child.jobs[0]
        if first.troubles == len(_PAUSES_S):
            raise MachineTrouble(
                f"{first.request.path!r}: {detail}; tried {first.troubles + 1} times. Nothing is "
                "lost: run the same command again, with more memory or fewer decoders if memory "
                "is short, or remove the file from the list to continue without it"
            )
        time.sleep(_PAUSES_S[first.troubles])
        first.troubles += 1
        self._replace(child)

    def _reject_first(self, child: _Child[T], code: str, detail: str) -> None:
        job = child.jobs.popleft()
        self._done[job.ticket] = (job.tag, RejectedClip(code, detail))
        self._replace(child)

    def _replace(self, child: _Child[T]) -> None:
        self._retries.extend(child.jobs)
        self._stop(child)
        self._children[self._children.index(child)] = self._start()

    def _start(self) -> _Child[T]:
        ours, theirs = socket.socketpair()
        # The file is in memory, so that a full TMPDIR does not matter, and lives with the child.
        stderr = open(os.memfd_create("stderr"), "w+b")  # noqa: SIM115
        memory = int(self._caps.memory_gib * 2**30)
        numbers = (theirs.fileno(), memory, self._caps.timeout_s, os.getpid())
        command = [sys.executable, "-P", "-m", "data_prep.jobs.child", *map(str, numbers)]
        process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stderr=stderr
        )
        theirs.close()
        return _Child(process, Connection(ours.detach()), stderr)

    def _stop(self, child: _Child[T]) -> None:
        child.connection.close()
        child.process.kill()
        child.process.wait()
        child.stderr.close()

    def _last_words(self, child: _Child[T]) -> str:
        child.stderr.seek(0)
        lines = child.stderr.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""


def _is_out_of_memory(answer: PreparedClip | RejectedClip) -> bool:
    return isinstance(answer, RejectedClip) and answer.code == "memory"
