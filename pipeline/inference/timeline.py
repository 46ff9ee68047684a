"""Pieces of a long video in order of time, without holding more of it than one piece."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.video.read import TimedPicture

Pictures = Sequence[NDArray[np.uint8]]

EARLY_S = 1e-3
"""A frame may be this early, because containers round times to ticks."""


class Window(NamedTuple):
    start_s: float
    end_s: float
    pictures: Pictures
    """(H, W, 3) uint8 each, at least one."""


class Moment(NamedTuple):
    """What a model says about a stretch of a video."""

    start_s: float
    end_s: float
    probabilities: NDArray[np.float32]
    """(classes,)."""
    features: NDArray[np.float32] | None = None
    """(embed_dim,), the mean over the views of what the head reads; None for a stream."""


def cut_windows(
    pictures: Iterable[TimedPicture], window_s: float, stride_s: float
) -> Iterator[Window]:
    """Cut a video into windows of `window_s` that start every `stride_s` seconds.

    The last window ends with the video, so all are equally long unless the video is shorter than
    one. A window in which no frame starts, as a still picture may leave it, has the frame that is
    shown then.
    """
    held: deque[TimedPicture] = deque()
    number, end = 0, 0.0
    for picture in pictures:
        while picture.time_s >= number * stride_s + window_s - EARLY_S:
            yield _cut(held or [picture], number * stride_s, number * stride_s + window_s)
            number += 1
        held.append(picture)
        end = picture.time_s + picture.shown_s
        # The frame shown at the start of the next window, or of the last one, stays.
        needed = min(number * stride_s, end - window_s) + EARLY_S
        while len(held) > 1 and held[1].time_s <= needed:
            held.popleft()
    if held and (number == 0 or end > (number - 1) * stride_s + window_s + EARLY_S):
        yield _cut(held, max(0.0, end - window_s), end)


def _cut(held: Iterable[TimedPicture], start_s: float, end_s: float) -> Window:
    before: TimedPicture | None = None
    inside = []
    for picture in held:
        if picture.time_s < start_s - EARLY_S:
            before = picture
        elif picture.time_s < end_s - EARLY_S:
            inside.append(picture.pixels)
    if not inside:
        assert before is not None
        inside = [before.pixels]
    return Window(start_s, end_s, inside)


class Curves:
    """The course of probabilities over time, in a bounded number of points.

    When there are too many, neighbours are averaged, and each point then stands for twice as many
    moments.
    """

    def __init__(self, max_points: int = 2000) -> None:
        """`max_points` must be even."""
        self._max_points = max_points
        self._per_point = 1
        self._done: list[Moment] = []
        self._open: list[Moment] = []

    def add(self, moment: Moment) -> None:
        self._open.append(moment)
        if len(self._open) == self._per_point:
            self._close()
        if len(self._done) == self._max_points:
            pairs = (self._done[at : at + 2] for at in range(0, len(self._done), 2))
            self._done = [_mean(pair) for pair in pairs]
            self._per_point *= 2

    def points(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float32]]:
        """Starts (n,) and ends (n,) in seconds and mean probabilities (n, classes)."""
        if self._open:
            self._close()
        starts = np.array([moment.start_s for moment in self._done])
        ends = np.array([moment.end_s for moment in self._done])
        return starts, ends, np.stack([moment.probabilities for moment in self._done])

    def _close(self) -> None:
        self._done.append(_mean(self._open))
        self._open = []


def _mean(moments: Sequence[Moment]) -> Moment:
    shares = np.stack([moment.probabilities for moment in moments]).mean(axis=0)
    return Moment(moments[0].start_s, moments[-1].end_s, shares)
