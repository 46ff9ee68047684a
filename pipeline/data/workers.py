"""Processes that make batches, deaf to the signals meant for the training process."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.data.batch import Batch
from pipeline.data.clips import ClipMaker, Request, as_batch
from pipeline.data.config import DataConfig
from pipeline.data.errors import DataError
from pipeline.data.ring import Ring

# SLURM signals every process of a job step, but only the training process may act on it.
_JOB_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


_Task = tuple[int, list[Request]]
"""A place of the ring, and what to fill it with."""

# Batches that the trainer may hold while it asks for the next, before clips are copied.
_HELD = 1


class WorkerBatches:
    """Batches made by `config.workers` processes (or here, for 0), in the order of the requests."""

    def __init__(
        self,
        maker: ClipMaker,
        requests: Iterable[list[Request]],
        batch_size: int,
        config: DataConfig,
    ) -> None:
        self._maker = maker
        self._requests = iter(requests)
        self._sent: deque[tuple[int, list[Request]]] = deque()
        self.processes: set[BaseProcess] = set()
        if not config.workers:
            return
        in_flight = config.workers * config.prefetch
        self._ring = Ring(in_flight + _HELD + 2, maker.batch_shape(batch_size))
        context = multiprocessing.get_context(config.worker_start)
        # The fork server imports torch once, in a process that never saw gloo, NCCL or CUDA.
        context.set_forkserver_preload([__name__])
        loader: DataLoader[dict[int, str] | DataError] = DataLoader(
            _Filler(maker, self._ring.places),  # type: ignore[arg-type] # needs __getitems__ only
            batch_sampler=self._tasks(),  # type: ignore[arg-type] # a task where it sees a batch
            num_workers=config.workers,
            collate_fn=_as_is,
            worker_init_fn=partial(_begin, os.getpid()),
            multiprocessing_context=context,
            prefetch_factor=config.prefetch,
            # Its own generator, so that the training process' random state stays untouched.
            generator=torch.Generator(),
        )
        before = set(multiprocessing.active_children())
        with _job_signals_blocked():
            self._answers: Iterator[dict[int, str] | DataError] = iter(loader)
        self.processes |= set(multiprocessing.active_children()) - before

    def _tasks(self) -> Iterator[_Task]:
        """Drawn in this process, whenever a loader process is given more to do."""
        for requests in self._requests:
            place = self._ring.take()
            self._sent.append((place, requests))
            yield place, requests

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self.processes:
            return self._made_here()
        answer = next(self._answers)
        place, requests = self._sent.popleft()
        clips = self._ring.hand_out(place)
        if isinstance(answer, DataError):
            raise answer
        return as_batch(requests, clips[: len(requests)], answer)

    def _made_here(self) -> Batch:
        requests = next(self._requests)
        clips = torch.empty(self._maker.batch_shape(len(requests)), dtype=torch.uint8)
        return as_batch(requests, clips, self._maker.fill(requests, clips))

    def close(self) -> None:
        """End the processes; one that hangs in a read is killed, for it ignores SIGTERM."""
        self._requests = iter(())
        self._answers = iter(())
        for process in self.processes:
            process.join(timeout=1)
            if process.is_alive():
                process.kill()
                process.join()
        self.processes.clear()


@dataclass(frozen=True)
class _Filler:
    """What a loader process does with a task."""

    maker: ClipMaker
    places: Tensor

    def __getitems__(self, task: _Task) -> dict[int, str] | DataError:
        place, requests = task
        try:
            return self.maker.fill(requests, self.places[place])
        except DataError as error:
            # Returned, not raised: torch would wrap it in a worker's traceback.
            return error


def _as_is(batch: Any) -> Any:
    return batch


def _begin(trainer: int, _worker: int) -> None:
    """First thing in a loader process: no signal ends it, the end of its trainer does."""
    for number in _JOB_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(trainer,), daemon=True).start()


def _leave_with(trainer: int) -> None:
    # Its parent is the fork server, which waits for its own children: neither would ever end.
    with suppress(ProcessLookupError):  # it has ended already
        select.select([os.pidfd_open(trainer)], [], [])
    os._exit(1)


@contextmanager
def _job_signals_blocked() -> Iterator[None]:
    """Processes started inside inherit the block, so no signal can end one before it ignores them.

    A signal for this process itself is delivered when the block ends.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, _JOB_SIGNALS)
    try:
        # Starting multiprocessing's tracker unblocks two of the signals, so it goes first.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, _JOB_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
