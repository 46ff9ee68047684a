"""How a scan is cut into blocks for a GPU, and the macros of its kernels.

All are pure functions of shapes and the card. Nothing is timed, so results are the same bits every
time.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from model.scan.cuda.elements import TYPES
from model.scan.cuda.launch import Card

MAX_STATES = 64
CHUNK = 16  # tokens between kept states
_MIN_SEGMENT_CHUNKS = 8
# For each padded state size: the warps per direction that a block of the backward kernel may have,
# and for each how many such blocks share a multiprocessor without spilling registers, where shared
# memory allows it.
_BACKWARD_BLOCKS = {8: {3: 3, 1: 9}, 16: {4: 2, 3: 3, 1: 9}, 32: {3: 2, 1: 6}, 64: {3: 2, 1: 6}}


def padded(size: int) -> int:
    """The state size that the kernels are compiled for: a power of two, at least 8."""
    return max(8, 1 << (size - 1).bit_length())


def chunks_of(length: int) -> int:
    return ceil_div(length, CHUNK)


class Plan(NamedTuple):
    """How a scan is cut: a pure function of its shape and the card."""

    forward_segments: int
    backward_segments: int
    backward_warps: int
    """Warps per direction of a block of the backward kernel."""

    @classmethod
    def of(
        cls,
        passes: int,
        batch: int,
        channels: int,
        length: int,
        size: int,
        groups: int,
        card: Card,
    ) -> "Plan":
        """Segments multiply the warps where batch and channels give few.

        They cost a pass over the tokens that finds each segment's start: 0.8 of the work of the
        forward scan, but 0.3 of backward's. Forward is therefore split only when it has fewer
        warps. The warps of a block are chosen for few rounds of blocks and many warps at a time;
        a block's sums for B and C count as 0.2 of a warp.
        """
        per_group = channels // groups
        chunks = chunks_of(length)
        forward_warps = passes * batch * groups * ceil_div(per_group * padded(size), 256)

        def segments(enough: int) -> int:
            if forward_warps >= enough * card.multiprocessors:
                return 1
            wanted = ceil_div(16 * card.multiprocessors, forward_warps)
            return max(1, min(wanted, chunks // _MIN_SEGMENT_CHUNKS, 64))

        backward = segments(10)

        def cost(warps: int) -> float:
            tiles = groups * ceil_div(per_group * padded(size), 256 * warps)
            rounds = ceil_div(tiles * batch * backward, card.multiprocessors)
            at_a_time = min(16, 2 * warps * backward_blocks(size, warps, card.shared))
            return rounds * warps * (1 + 0.2 / warps) * math.sqrt(16 / at_a_time)

        return cls(segments(6), backward, min(_BACKWARD_BLOCKS[padded(size)], key=cost))


def ceil_div(a: int, b: int) -> int:
    return (a + b - 1) // b


def backward_shared(size: int, warps: int, directions: int = 2) -> int:
    """Bytes of shared memory of a block of the backward kernel; see scan_backward.cuh."""
    size = padded(size)
    channels, slots = 256 // size, 7 if size <= 32 else 8
    of_warp = 4 * CHUNK * channels + slots * 256 + channels + 128
    return directions * 4 * (CHUNK * 2 * size + 36 + warps * of_warp)


def backward_blocks(size: int, warps: int, shared: int) -> int:
    """How many blocks of the backward kernel share a multiprocessor."""
    fit = shared // (backward_shared(size, warps) + 1024)  # CUDA reserves 1 KiB of each block
    return max(1, min(fit, _BACKWARD_BLOCKS[padded(size)][warps]))


def macros(
    dtype: torch.dtype,
    size: int,
    warps: int,
    shared: int,
    states_given: bool = False,
    width: int = 2,
) -> dict[str, str | int]:
    """Macros of scan.cu for a multiprocessor with ``shared`` bytes of shared memory.

    ``width`` is the number of neighbouring channels that a lane moves as one word: 2 where every
    row begins at an even element, else 1.
    """
    return {
        "ACTIVATION": TYPES[dtype],
        "STATES": padded(size),
        "STATES_GIVEN": int(states_given),
        "WIDTH": width,
        "BACKWARD_WARPS": warps,
        "BACKWARD_BLOCKS": backward_blocks(size, warps, shared),
    }


def variants() -> Iterator[tuple[int, int]]:
    """The state sizes and warps per block of the backward kernel that ``macros`` knows."""
    return ((size, warps) for size, blocks in _BACKWARD_BLOCKS.items() for warps in blocks)
