"""Loader processes that make batches and ignore the signals meant for the training process."""

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

# SLURM signals every process of a job step, but only the training process may act on these.
_JOB_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


_Task = tuple[int, list[Request]]
"""A place of the ring, and the requests that fill it."""

# The trainer may hold this many batches while it asks for the next, before clips are copied.
_HELD = 1


class WorkerBatches:
    """Iterator of batches in the order of the requests, made by `config.workers` processes.

    With 0 workers the training process makes them.
    """

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
        # The fork server imports torch once, in a process without any state of gloo, NCCL or CUDA.
        context.set_forkserver_preload([__name__])
        loader: DataLoader[dict[int, str] | DataError] = DataLoader(
            _Filler(maker, self._ring.places),  # type: ignore[arg-type] # needs __getitems__ only
            batch_sampler=self._tasks(),  # type: ignore[arg-type] # a task where it sees a batch
            num_workers=config.workers,
            collate_fn=_as_is,
            worker_init_fn=partial(_begin, os.getpid()),
            multiprocessing_context=context,
            prefetch_factor=config.prefetch,
            # With a generator of its own, the loader leaves torch's global random state alone.
            generator=torch.Generator(),
        )
        before = set(multiprocessing.active_children())
        with _job_signals_blocked():
            self._answers: Iterator[dict[int, str] | DataError] = iter(loader)
        self.processes |= set(multiprocessing.active_children()) - before

    def _tasks(self) -> Iterator[_Task]:
        """Yield tasks in this process, one whenever a loader process is given more work."""
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
        """End the processes; one that hangs in a read is killed, because it ignores SIGTERM."""
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
    """The data set of the DataLoader, which fills places of the ring in a loader process."""

    maker: ClipMaker
    places: Tensor

    def __getitems__(self, task: _Task) -> dict[int, str] | DataError:
        place, requests = task
        try:
            return self.maker.fill(requests, self.places[place])
        except DataError as error:
            # The error is returned because torch would wrap a raised one in a worker's traceback.
            return error


def _as_is(batch: Any) -> Any:
    return batch


def _begin(trainer: int, _worker: int) -> None:
    """Set up a loader process to ignore the job's signals and to end when its trainer does."""
    for number in _JOB_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(trainer,), daemon=True).start()


def _leave_with(trainer: int) -> None:
    # The process cannot watch its parent: that is the fork server, which itself waits for its
    # children to end.
    with suppress(ProcessLookupError):  # the trainer has ended already
        select.select([os.pidfd_open(trainer)], [], [])
    os._exit(1)


@contextmanager
def _job_signals_blocked() -> Iterator[None]:
    """Block the job's signals, so that none ends a process started inside before it ignores them.

    Processes that start inside the block inherit this. A signal for this process is delivered when
    the block ends.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, _JOB_SIGNALS)
    try:
        # Starting multiprocessing's resource tracker unblocks two of the signals, so it starts
        # first and the signals are blocked again.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, _JOB_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
