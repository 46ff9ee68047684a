"""Loaders of endless training batches and of exact evaluation batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Protocol

from pipeline.data.batch import Batch
from pipeline.data.clips import ClipMaker, EvalClips, Request, TrainClips, frame_decoder
from pipeline.data.config import DataConfig
from pipeline.data.errors import DataError
from pipeline.data.ffcv.loader import CachedBatches
from pipeline.data.order import ElasticBatches, ExactBatches, Slot
from pipeline.data.reader import ShardReader
from pipeline.data.shard_cache import ShardCache
from pipeline.data.shards import Shards
from pipeline.data.workers import WorkerBatches

logger = logging.getLogger(__name__)


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
    left_out: frozenset[int] = frozenset(),
    labelled: bool = True,
) -> TrainLoader:
    """Build the loader of one rank's endless micro-batches.

    `start` is the position at which it begins: the samples consumed so far by the whole run.
    `left_out` are the numbers of global batches that it passes over, see `ElasticBatches`.
    Raises DataError when the batch sizes do not fit one another, the data or `start`, or when the
    samples must be `labelled` and are not.
    """
    batches = ElasticBatches(
        order=partial(shards.order, seed, window=config.shuffle_window_shards),
        num_samples=len(shards),
        global_batch=global_batch,
        micro_batch=micro_batch,
        rank=rank,
        world=world,
        start=start,
        left_out=left_out,
    )
    if config.mix.is_on and micro_batch % 2:
        raise DataError(
            f"data.mix pairs neighbouring samples, so micro-batches must be even, "
            f"not {micro_batch}: change batch.max_micro or the number of ranks"
        )
    shards.require_samples(labelled=labelled)
    maker = TrainClips(open_reader(shards, config), config, img_size, num_frames, seed)
    source: BatchSource
    if config.reader == "ffcv":
        source = CachedBatches(maker, shards, config, batches)
    else:
        source = WorkerBatches(maker, _train_requests(shards, batches), micro_batch, config)
    return TrainLoader(shards, config, batches, source)


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
    labelled: bool = True,
) -> EvalLoader:
    """Build the loader of one rank's evaluation batches, which can be iterated repeatedly.

    The ranks together see every sample once, in `clips * crops` views. All ranks get the same
    number of batches of the same size; the last ones are padded with zero-weight rows.
    `shuffle_frames` puts the frames of every clip in a random but fixed order.
    Raises DataError when `crops` is neither 1 nor 3, or when the samples must be `labelled` and are
    not.
    """
    if crops not in (1, 3):
        raise DataError(f"{crops} crops per clip: choose 1 (centre) or 3 (along the long side)")
    shards.require_samples(labelled=labelled)
    reader = open_reader(shards, config)
    maker = EvalClips(reader, config, img_size, num_frames, seed, clips, crops, shuffle_frames)
    batches = ExactBatches(len(shards), batch_size, rank, world)
    return EvalLoader(shards, config, batches, maker)


class BatchSource(Protocol):
    """Source of a training loader's batches: loader processes or an FFCV cache."""

    @property
    def processes(self) -> Iterable[BaseProcess]: ...
    def __iter__(self) -> Iterator[Batch]: ...
    def __next__(self) -> Batch: ...
    def close(self) -> None: ...


@dataclass
class _Loader:
    shards: Shards
    config: DataConfig
    wait_s: float = field(default=0.0, init=False)
    """Seconds that the caller has waited for batches so far."""
    bad: dict[str, str] = field(default_factory=dict, init=False)
    """Key -> reason of every sample that this rank could not read."""

    def _receive(self, batches: Iterator[Batch]) -> Batch:
        begin = time.perf_counter()
        batch = next(batches)
        self.wait_s += time.perf_counter() - begin
        for key, reason in batch.bad:
            logger.warning("sample %s has no weight in this step: %s", key, reason)
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
    """Endless iterator over one rank's micro-batches. Close it, or use it in a `with` block."""

    batches: ElasticBatches
    source: BatchSource = field(repr=False)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return self._receive(self.source)

    def keys_of(self, batch: int) -> list[str]:
        """Return the keys of the samples of a global batch, over all ranks."""
        return self.shards.keys(self.batches.rows_of(batch))

    @property
    def processes(self) -> Iterable[BaseProcess]:
        """The loader processes of this rank."""
        return self.source.processes

    def close(self) -> None:
        self.source.close()

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class EvalLoader(_Loader):
    """Evaluation batches of one rank; each `iter()` makes a pass with its own loader processes."""

    batches: ExactBatches
    maker: ClipMaker = field(repr=False)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        workers = WorkerBatches(self.maker, self._requests(), self.batches.batch_size, self.config)
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


def _train_requests(shards: Shards, batches: ElasticBatches) -> Iterator[list[Request]]:
    for slots in batches:
        samples = shards.samples([slot.row for slot in slots])
        yield list(zip(slots, samples, strict=True))


def open_reader(shards: Shards, config: DataConfig) -> ShardReader:
    """Open a reader of these shards with the checks, retries and cache that `config` asks for.

    Raises DataError when the decoder of `config` cannot be used here.
    """
    frame_decoder(config.decoder, adopted=shards.manifest.adopted)
    cache = None
    if config.cache_dir is not None:
        cache = ShardCache(config.cache_dir, int(config.cache_gib * 2**30))
    return shards.reader(verify=config.verify_reads, attempts=config.read_attempts, cache=cache)
