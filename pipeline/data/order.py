"""The assignment of samples to batches: exact, elastic, and determined by one integer position."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data.errors import DataError

Order = Callable[[int], NDArray[np.int64]]
"""Epoch -> permutation of all sample numbers, shape (N,)."""


class Slot(NamedTuple):
    """A place in the endless sequence of training samples."""

    epoch: int
    position: int
    """Samples that the whole run consumes before this one."""
    row: int
    """Number of the sample in its `Shards`."""


@dataclass(frozen=True)
class ElasticBatches:
    """One rank's endless micro-batches, from any position and for any number of ranks.

    Epoch e has `batches_per_epoch = N // global_batch` global batches; the remainder of `order(e)`,
    which differs in every epoch, is left out. A position counts the samples consumed since the run
    began. At every optimizer step it is a multiple of the global batch, so
    `epoch = position // (batches_per_epoch * global_batch)`.

    A global batch is cut into consecutive micro-batches. Micro-batch m goes to rank `m % world` as
    its accumulation step `m // world`. Which samples a global batch contains does not depend on
    `world` or `micro_batch`.

    Raises DataError when the sizes do not divide one another or the data do not fill a batch.
    """

    order: Order
    num_samples: int
    global_batch: int
    micro_batch: int
    rank: int = 0
    world: int = 1
    start: int = 0
    left_out: frozenset[int] = frozenset()
    """Numbers of the global batches, from the start of the run, that are passed over."""

    def __post_init__(self) -> None:
        share = self.micro_batch * self.world
        if share < 1 or self.global_batch < 1 or self.global_batch % share:
            raise DataError(
                f"global batch {self.global_batch} is not a multiple of micro_batch "
                f"{self.micro_batch} x {self.world} ranks; change micro_batch or the ranks"
            )
        if self.num_samples < self.global_batch:
            raise DataError(
                f"{self.num_samples} samples do not fill one global batch of {self.global_batch}; "
                "use a smaller global batch or more data"
            )
        if self.start < 0 or self.start % self.global_batch:
            raise DataError(
                f"position {self.start} is not a multiple of the global batch {self.global_batch}; "
                "keep the global batch of the run that is resumed"
            )
        if not 0 <= self.rank < self.world:
            raise DataError(f"rank {self.rank} outside a world of {self.world}")

    @property
    def batches_per_epoch(self) -> int:
        """Number of optimizer steps per epoch."""
        return self.num_samples // self.global_batch

    @property
    def accumulation(self) -> int:
        """Number of micro-batches of one rank per optimizer step."""
        return self.global_batch // (self.micro_batch * self.world)

    def rows_of(self, batch: int) -> list[int]:
        """Return the sample numbers of a global batch, counted from the start of the run."""
        epoch, number = divmod(batch, self.batches_per_epoch)
        begin = number * self.global_batch
        return [int(row) for row in self.order(epoch)[begin : begin + self.global_batch]]

    def __iter__(self) -> Iterator[list[Slot]]:
        epoch, batch = divmod(self.start // self.global_batch, self.batches_per_epoch)
        while True:
            order = self.order(epoch)
            for number in range(batch, self.batches_per_epoch):
                if epoch * self.batches_per_epoch + number in self.left_out:
                    continue
                yield from self._micro_batches(epoch, number, order)
            epoch, batch = epoch + 1, 0

    def _micro_batches(
        self, epoch: int, number: int, order: NDArray[np.int64]
    ) -> Iterator[list[Slot]]:
        epoch_start = epoch * self.batches_per_epoch * self.global_batch
        for step in range(self.accumulation):
            begin = number * self.global_batch + (step * self.world + self.rank) * self.micro_batch
            yield [
                Slot(epoch, epoch_start + begin + i, int(row))
                for i, row in enumerate(order[begin : begin + self.micro_batch])
            ]


@dataclass(frozen=True)
class ExactBatches:
    """One rank's evaluation batches; the ranks together have every sample once, in storage order.

    Iteration yields `len(self)` lists of at most `batch_size` sample numbers. Every rank yields the
    same number of lists, the last of which may be short or empty.
    """

    num_samples: int
    batch_size: int
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        return -(-self.num_samples // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(len(self)):
            begin = (step * self.world + self.rank) * self.batch_size
            yield list(range(begin, min(begin + self.batch_size, self.num_samples)))
