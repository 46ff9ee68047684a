"""Processes that prepare clips and may be killed at any time.

A file that crashes its process, or keeps it longer than the cap, costs that process and nothing
else: the file is rejected, another process takes over. One start serves many files.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import IO, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from data_prep.video.clip import ClipRequest, PreparedClip, RejectedClip

T = TypeVar("T")
_QUEUE_PER_CHILD = 2  # the next request is there before the last answer is read
_WINDOW_PER_CHILD = 8  # answers held back until the ones before them arrive


class Caps(BaseModel):
    """What one file may cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout_s: float = Field(default=300.0, gt=0)
    memory_gib: float = Field(default=4.0, gt=0)
    """Address space of a decoding process above what it starts with."""


@dataclass(slots=True)
class _Job(Generic[T]):
    ticket: int
    tag: T
    request: ClipRequest
    crashed_before: bool = False


@dataclass(slots=True)
class _Child(Generic[T]):
    process: subprocess.Popen[bytes]
    connection: Connection
    stderr: IO[bytes]
    jobs: deque[_Job[T]] = field(default_factory=deque)
    busy_since: float = 0.0


class ClipPool(Generic[T]):
    """`size` child processes. Use as a context manager; not for several threads."""

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
        self, requests: Iterable[tuple[T, ClipRequest]]
    ) -> Iterator[tuple[T, PreparedClip | RejectedClip]]:
        """Answers in the order of the requests, which are drawn as places become free."""
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
        if not child.jobs:
            child.busy_since = time.monotonic()
        child.jobs.append(job)
        try:
            child.connection.send(job.request)
        except (BrokenPipeError, ConnectionResetError):
            return  # its death is seen, and its jobs saved, at the next collection

    def _collect(self) -> None:
        """Wait for at least one answer, death or overdue file."""
        while self._retries and self._room_for_retry():
            self._submit(self._retries.popleft())
        busy = [child for child in self._children if child.jobs]
        oldest = min(child.busy_since for child in busy)
        patience = max(0.0, oldest + self._caps.timeout_s - time.monotonic())
        ready = set(wait([child.connection for child in busy], timeout=patience))
        for child in busy:
            if child.connection in ready:
                self._receive(child)
            elif time.monotonic() - child.busy_since > self._caps.timeout_s:
                self._reject_first(child, "timeout", f"over {self._caps.timeout_s:g} s")

    def _room_for_retry(self) -> bool:
        return any(not child.jobs for child in self._children)

    def _receive(self, child: _Child[T]) -> None:
        try:
            answer = child.connection.recv()
        except (EOFError, OSError):  # OSError: it died in the middle of an answer
            self._handle_death(child)
            return
        job = child.jobs.popleft()
        child.busy_since = time.monotonic()
        self._done[job.ticket] = (job.tag, answer)

    def _handle_death(self, child: _Child[T]) -> None:
        status = child.process.wait()
        first = child.jobs[0]
        if first.crashed_before:
            detail = f"the decoder died twice (status {status}){self._last_words(child)}"
            self._reject_first(child, "crash", detail)
            return
        # Once may be the machine's fault, so the file gets a second process.
        first.crashed_before = True
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
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        memory = int(self._caps.memory_gib * 2**30)
        numbers = (theirs.fileno(), memory, os.getpid())
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
