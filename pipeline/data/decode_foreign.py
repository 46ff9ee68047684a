"""Decoding of videos as other tools made them: any container and codec, in any colours.

Every picture is made upright, small and BT.601 as sharding would have done once, so training sees
what `vmp data shard` would store, but for the compression. Files are decoded from their beginning,
because only a file in the normal form says where decoding may start.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_prep.video.read import UnreadableVideoError, read_selected
from pipeline.data.errors import SampleError


def decode_frames(
    video: bytes, wanted: NDArray[np.int64], keyframes: Sequence[int]
) -> NDArray[np.uint8]:
    """Decode as `pipeline.data.decode.decode_frames` does; `keyframes` are not used."""
    numbers, places = np.unique(wanted, return_inverse=True)
    try:
        frames = np.stack(list(read_selected(video, numbers.tolist())))
    except UnreadableVideoError as error:
        raise SampleError(f"cannot be decoded: {error}") from error
    return frames if np.array_equal(numbers, wanted) else frames[places]
