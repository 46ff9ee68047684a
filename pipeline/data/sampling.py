"""The choice of a clip's frames.

Every function returns int64 frame numbers in [0, total), in non-decreasing order. A video shorter
than the clip has some frames repeated in a fixed way.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Sampling = Literal["tsn", "dense", "segment"]
Frames = NDArray[np.int64]


def train_frames(
    kind: Sampling, total: int, num_frames: int, stride: int, rng: np.random.Generator
) -> Frames:
    """Draw a random clip of `num_frames` out of `total` frames: shape (num_frames,)."""
    _check(total, num_frames)
    if kind == "dense":
        return _window(
            int(rng.integers(_last_start(total, num_frames, stride) + 1)), total, num_frames, stride
        )
    if kind == "tsn":
        # Neighbouring segments share their inclusive bounds, as in the published TSN sampling.
        bounds = np.round(np.arange(num_frames + 1) * ((total - 1) / num_frames)).astype(np.int64)
        return rng.integers(bounds[:-1], bounds[1:], endpoint=True)
    ticks = (np.arange(num_frames) + rng.random(num_frames)) * (total / num_frames)
    return np.minimum(ticks.astype(np.int64), total - 1)


def eval_frames(kind: Sampling, total: int, num_frames: int, stride: int, clips: int) -> Frames:
    """Return `clips` fixed clips that together cover the video: shape (clips, num_frames).

    With tsn, clip k takes the frame at (k + 1) / (clips + 1) of every segment; a single clip takes
    the middles. With dense, the clips are evenly spaced windows; a single clip is the central one.
    With segment, clip k takes the centres of parts k, k + clips, ... of `clips * num_frames` equal
    parts.
    """
    _check(total, num_frames)
    if kind == "dense":
        last = _last_start(total, num_frames, stride)
        starts = [last // 2] if clips == 1 else [last * k // (clips - 1) for k in range(clips)]
        return np.stack([_window(start, total, num_frames, stride) for start in starts])
    if kind == "tsn":
        segment = (total - 1) / num_frames
        first = np.round(np.arange(num_frames) * segment).astype(np.int64)
        inside = (np.arange(1, clips + 1) * (segment / (clips + 1))).astype(np.int64)
        frames: Frames = np.minimum(first + inside[:, None], total - 1)
        return frames
    ticks = (np.arange(clips * num_frames) + 0.5) * (total / (clips * num_frames))
    return np.ascontiguousarray(ticks.astype(np.int64).reshape(num_frames, clips).T)


def _last_start(total: int, num_frames: int, stride: int) -> int:
    return max(0, total - ((num_frames - 1) * stride + 1))


def _window(start: int, total: int, num_frames: int, stride: int) -> Frames:
    """Return a window of frames; past the end of a short video, the last frame is repeated.

    The speed of motion thus stays the same.
    """
    return np.minimum(start + np.arange(num_frames, dtype=np.int64) * stride, total - 1)


def _check(total: int, num_frames: int) -> None:
    if total < 1 or num_frames < 1:
        raise ValueError(f"a clip of {num_frames} frames from a video of {total} frames")
