"""Training batches from an FFCV cache, in the same exact order and with the same randomness.

FFCV's compiled threads read the stored clips. Python threads of this process crop and augment them
with the code for decoded clips. Both work ahead of the trainer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from multiprocessing.process import BaseProcess
from threading import Barrier

import torch
from torch import Tensor

from pipeline.data.augment import Frames
from pipeline.data.batch import Batch
from pipeline.data.clips import TrainClips, as_batch
from pipeline.data.config import DataConfig
from pipeline.data.ffcv.cache import import_ffcv, open_fitting_cache
from pipeline.data.order import ElasticBatches, Slot
from pipeline.data.reader import Sample
from pipeline.data.shards import Shards

# Planning this many micro-batches at a time bounds the plan's memory for any length of epoch.
_PLAN_MICRO_BATCHES = 1024


class CachedBatches:
    """Endless iterator over one rank's micro-batches, made by `config.workers` threads."""

    def __init__(
        self, maker: TrainClips, shards: Shards, config: DataConfig, batches: ElasticBatches
    ) -> None:
        path = open_fitting_cache(
            config, shards, num_frames=maker.num_frames, img_size=maker.img_size
        )
        self._maker = maker
        self._shards = shards
        self._batches = batches
        threads = max(1, config.workers)
        self._reader = import_ffcv().BetonReader(
            path, batches.micro_batch, threads, config.prefetch
        )
        self._cutters = _single_threaded(threads)
        self._producer = _single_threaded(1)
        self._made = self._make()
        self._ahead: deque[Future[Batch]] = deque(
            self._producer.submit(next, self._made) for _ in range(config.prefetch)
        )

    @property
    def processes(self) -> Iterable[BaseProcess]:
        return ()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self._ahead.popleft().result()
        self._ahead.append(self._producer.submit(next, self._made))
        return batch

    def close(self) -> None:
        self._producer.shutdown(cancel_futures=True)
        self._made.close()
        self._cutters.shutdown()

    def _make(self) -> Generator[Batch, None, None]:
        micro_batches = iter(self._batches)
        while True:
            plan = list(islice(micro_batches, _PLAN_MICRO_BATCHES))
            rows = [slot.row for slots in plan for slot in slots]
            for slots, clips in zip(plan, self._reader.batches(rows), strict=True):
                samples = self._shards.samples([slot.row for slot in slots])
                views = torch.empty(self._maker.batch_shape(len(slots)), dtype=torch.uint8)
                list(self._cutters.map(self._cut, slots, samples, clips, views))
                yield as_batch(list(zip(slots, samples, strict=True)), views, {})

    def _cut(self, slot: Slot, sample: Sample, frames: Frames, out: Tensor) -> None:
        chosen = self._maker.frames_of_stored(slot, sample, len(frames))
        if len(chosen) < len(frames):
            frames = frames[chosen]
        self._maker.cut(slot, sample, frames, out)


def _single_threaded(count: int) -> ThreadPoolExecutor:
    """Start a pool in which torch uses one thread per worker; the caller's setting stays."""
    torch_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    # All threads start now, because each one also changes the default of the process, which is
    # restored below.
    started = Barrier(count)
    list(pool.map(lambda _: started.wait(), range(count)))
    torch.set_num_threads(torch_threads)
    return pool
