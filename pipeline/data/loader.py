"""Loader processes around the clip makers, for training without end and for exact evaluation."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader

from pipeline.data.batch import Batch
from pipeline.data.clips import ClipMaker, EvalClips, Request, TrainClips, frame_decoder
from pipeline.data.config import DataConfig
from pipeline.data.errors import DataError
from pipeline.data.order import ElasticBatches, ExactBatches, Slot
from pipeline.data.reader import ShardReader
from pipeline.data.shard_cache import ShardCache
from pipeline.data.shards import Shards

logger = logging.getLogger(__name__)

# SLURM signals every process of a job step, but only the training process may act on it.
_JOB_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def build_train_loader(
    shards: Shards,
    config: DataConfig,
    *,
    img_size: int,
    num_frames: int,
    seed: int,
    global_batch: int,
    micro_batch: int,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
) -> TrainLoader:
    """One rank's endless micro-batches from position `start` (samples consumed by the whole run).

    Raises DataError when the batch sizes do not fit together, the data or the position.
    """
    batches = ElasticBatches(
        order=partial(shards.order, seed, window=config.shuffle_window_shards),
        num_samples=len(shards),
        global_batch=global_batch,
        micro_batch=micro_batch,
        rank=rank,
        world=world,
        start=start,
    )
    if config.mix.is_on and micro_batch % 2:
        raise DataError(
            f"data.mix pairs neighbouring samples, so micro-batches must be even, "
            f"not {micro_batch}: change batch.max_micro or the number of ranks"
        )
    _check_labels(shards)
    reader = open_reader(shards, config)
    return TrainLoader(
        shards, config, TrainClips(reader, config, img_size, num_frames, seed), batches
    )


def build_eval_loader(
    shards: Shards,
    config: DataConfig,
    *,
    img_size: int,
    num_frames: int,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    clips: int = 1,
    crops: int = 1,
    shuffle_frames: bool = False,
    seed: int = 0,
) -> EvalLoader:
    """Every sample once over all ranks, in `clips * crops` views; iterate it as often as you like.

    All ranks see the same number of batches of the same size: the last ones are padded with
    zero-weight rows. `shuffle_frames` puts the frames of every clip in a random (fixed) order.
    """
    if crops not in (1, 3):
        raise DataError(f"{crops} crops per clip: choose 1 (centre) or 3 (along the long side)")
    _check_labels(shards)
    reader = open_reader(shards, config)
    maker = EvalClips(reader, config, img_size, num_frames, seed, clips, crops, shuffle_frames)
    return EvalLoader(shards, config, maker, ExactBatches(len(shards), batch_size, rank, world))


@dataclass
class _Loader:
    shards: Shards
    config: DataConfig
    maker: ClipMaker
    wait_s: float = field(default=0.0, init=False)
    """Seconds the caller has spent waiting for batches so far."""
    bad: dict[str, str] = field(default_factory=dict, init=False)
    """Key -> reason of every sample this rank could not read."""

    def _receive(self, batches: Iterator[Batch | DataError]) -> Batch:
        begin = time.perf_counter()
        batch = next(batches)
        self.wait_s += time.perf_counter() - begin
        if isinstance(batch, DataError):
            raise batch
        for key, reason in batch.bad:
            logger.warning("sample %s counts nothing in this step: %s", key, reason)
            self.bad[key] = reason
        if len(self.bad) > self.config.max_bad_samples:
            key, reason = next(reversed(self.bad.items()))
            raise DataError(
                f"{self.shards.location}: {len(self.bad)} samples could not be read, more than "
                f"data.max_bad_samples={self.config.max_bad_samples}; the last: {key} {reason}"
            )
        return batch


@dataclass
class TrainLoader(_Loader):
    """An endless iterator over one rank's micro-batches. Close it, or use it in a `with`."""

    batches: ElasticBatches

    def __post_init__(self) -> None:
        self._workers = _Workers(self.maker, self._requests(), self.config)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return self._receive(self._workers)

    @property
    def processes(self) -> Iterable[BaseProcess]:
        """The loader processes of this rank."""
        return self._workers.processes

    def close(self) -> None:
        self._workers.close()

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _requests(self) -> Iterator[list[Request]]:
        for slots in self.batches:
            samples = self.shards.samples([slot.row for slot in slots])
            yield list(zip(slots, samples, strict=True))


@dataclass
class EvalLoader(_Loader):
    """One pass per `iter()`; loader processes live for one pass."""

    batches: ExactBatches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        workers = _Workers(self.maker, self._requests(), self.config)
        try:
            for _ in range(len(self)):
                yield self._receive(workers)
        finally:
            workers.close()

    def _requests(self) -> Iterator[list[Request]]:
        for indices in self.batches:
            samples = self.shards.samples(indices)
            rows: list[Request] = [
                (Slot(0, index, index), sample)
                for index, sample in zip(indices, samples, strict=True)
            ]
            yield rows + [(Slot(0, -1, -1), None)] * (self.batches.batch_size - len(rows))


class _Workers:
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


def open_reader(shards: Shards, config: DataConfig) -> ShardReader:
    """How `config` reads these shards: checks, retries and the cache of remote data."""
    frame_decoder(config.decoder)
    cache = None
    if config.cache_dir is not None:
        cache = ShardCache(config.cache_dir, int(config.cache_gib * 2**30))
    return shards.reader(verify=config.verify_reads, attempts=config.read_attempts, cache=cache)


def _check_labels(shards: Shards) -> None:
    if not len(shards):
        raise DataError(f"{shards.location}: no samples in this split")
    if (shards.labels < 0).any():
        raise DataError(
            f"{shards.location}: {int((shards.labels < 0).sum())} samples have no label; "
            "training and evaluation need one for each"
        )
