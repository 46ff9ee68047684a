"""Places in shared memory that loader processes fill and the training process hands out.

New shared memory for every batch costs each of its pages three times: given out, cleared and taken
back by the kernel. These places are made once and used again as soon as nobody holds their clips.
"""

from __future__ import annotations

import math
import weakref
from collections import deque

import torch
from torch import Tensor

from pipeline.data.errors import DataError


class Ring:
    """`count` places for one batch of clips each. Lives in the process that asks for batches."""

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
        """(count, *shape) uint8; what is sent to the loader processes."""
        self._free = deque(range(count))

    def take(self) -> int:
        """A place that nobody fills or holds."""
        return self._free.popleft()

    def hand_out(self, place: int) -> Tensor:
        """The clips of a filled place, which is free again when no tensor shares their memory.

        One place always stays free: when the last is asked for, the clips are copied instead.
        """
        clips = self.places.numpy()[place]
        if not self._free:
            self._free.append(place)
            return torch.tensor(clips)
        weakref.finalize(clips, self._free.append, place).atexit = False
        # The tensor's storage keeps this very array alive.
        return torch.from_numpy(clips)
