"""Processes that make batches, deaf to the signals meant for the training process."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

import torch
from torch.utils.data import DataLoader

from pipeline.data.batch import Batch
from pipeline.data.clips import ClipMaker, Request, TrainClips
from pipeline.data.config import DataConfig
from pipeline.data.errors import DataError

# SLURM signals every process of a job step, but only the training process may act on it.
_JOB_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class WorkerBatches:
    """Batches made by `config.workers` processes (or here, for 0), in the order of the requests."""

    def __init__(
        self, maker: ClipMaker, requests: Iterable[list[Request]], config: DataConfig
    ) -> None:
        context = None
        if config.workers:
            context = multiprocessing.get_context(config.worker_start)
            # The fork server imports torch once, in a process that never saw gloo, NCCL or CUDA.
            context.set_forkserver_preload([TrainClips.__module__])
        loader: DataLoader[Batch] = DataLoader(
            maker,  # type: ignore[arg-type] # needs __getitems__ only
            batch_sampler=requests,
            num_workers=config.workers,
            collate_fn=_as_is,
            worker_init_fn=_ignore_job_signals,
            multiprocessing_context=context,
            prefetch_factor=config.prefetch if config.workers else None,
            pin_memory=torch.cuda.is_available(),
            # Its own generator, so that the training process' random state stays untouched.
            generator=torch.Generator(),
        )
        before = set(multiprocessing.active_children())
        with _job_signals_blocked():
            self._batches: Iterator[Batch | DataError] | None = iter(loader)
        self.processes = set(multiprocessing.active_children()) - before

    def __iter__(self) -> Iterator[Batch | DataError]:
        return self

    def __next__(self) -> Batch | DataError:
        if self._batches is None:
            raise StopIteration
        return next(self._batches)

    def close(self) -> None:
        """End the processes; one that hangs in a read is killed, for it ignores SIGTERM."""
        self._batches = None
        for process in self.processes:
            process.join(timeout=1)
            if process.is_alive():
                process.kill()
                process.join()
        self.processes.clear()


def _as_is(batch: Any) -> Any:
    return batch


def _ignore_job_signals(_worker: int) -> None:
    for number in _JOB_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


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
