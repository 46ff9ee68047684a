"""The torchcodec back-end, which gives the same frames as `pipeline.data.decode`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.errors import DataError, SampleError

try:
    from torchcodec.decoders import VideoDecoder
# torchcodec raises RuntimeError when its own libraries do not load.
except (ImportError, RuntimeError) as error:
    raise DataError(
        "data.decoder=torchcodec cannot be used here "
        f"({str(error).strip().splitlines()[0]}): install torchcodec==0.13.0 and FFmpeg's shared "
        "libraries, or set data.decoder=pyav"
    ) from None


def decode_frames(
    video: bytes, wanted: NDArray[np.int64], keyframes: Sequence[int]
) -> NDArray[np.uint8]:
    """Decode as `pipeline.data.decode.decode_frames` does; `keyframes` are not used."""
    numbers, places = np.unique(wanted, return_inverse=True)
    try:
        decoder = VideoDecoder(video, dimension_order="NHWC", num_ffmpeg_threads=1)
        frames: NDArray[np.uint8] = decoder.get_frames_at(numbers.tolist()).data.numpy()
    except (RuntimeError, IndexError, ValueError) as error:
        raise SampleError(f"cannot be decoded: {' '.join(str(error).split())}") from error
    return frames if np.array_equal(numbers, wanted) else frames[places]
