"""Places in shared memory that loader processes fill and the training process hands out.

With new shared memory for every batch, the kernel would have to allocate, clear and free each page
every time. These places are allocated once, and a place is reused once no tensor holds its clips.
"""

from __future__ import annotations

import math
import weakref
from collections import deque

import torch
from torch import Tensor

from pipeline.data.errors import DataError


class Ring:
    """Pool of `count` places for one batch of clips each, owned by the training process."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        size = count * math.prod(shape)
        try:
            storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise DataError(
                f"loader processes need {size / 2**30:.2f} GiB of shared memory ({error}); enlarge "
                "/dev/shm (containers: --shm-size) or lower data.workers, data.prefetch or the "
                "micro-batch"
            ) from None
        self.places = torch.empty(0, dtype=torch.uint8).set_(storage).view(count, *shape)
        """(count, *shape) uint8, shared with the loader processes."""
        self._free = deque(range(count))

    def take(self) -> int:
        """Return a place that no process fills or holds."""
        return self._free.popleft()

    def hand_out(self, place: int) -> Tensor:
        """Return the clips of a filled place, which becomes free once no tensor shares its memory.

        If no other place is free, the clips are copied, so that one place always stays free.
        """
        clips = self.places.numpy()[place]
        if not self._free:
            self._free.append(place)
            return torch.tensor(clips)
        weakref.finalize(clips, self._free.append, place).atexit = False
        # The tensor's storage keeps this array alive, so the finalizer runs when both are gone.
        return torch.from_numpy(clips)
