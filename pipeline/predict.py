"""Class probabilities for video files that need not be sharded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from data_prep.video.read import (
    TimedPicture,
    UnreadableVideoError,
    read_pictures,
    read_timed_pictures,
)
from model import StaggeredStream, Stream, VideoMamba
from pipeline.config import RunConfig
from pipeline.data.augment import square_crops
from pipeline.data.batch import normalize
from pipeline.data.errors import DataError
from pipeline.data.sampling import eval_frames
from pipeline.errors import ConfigError
from pipeline.inference.timeline import Moment, cut_windows
from pipeline.inference.trained import open_trained

_HELD = 1000
"""A longer video is read twice rather than held in memory: of 256 px, 1000 frames are 350 MB."""
_SHORTEST_S = 0.01


class Answer(NamedTuple):
    """Means over the views of a video."""

    probabilities: NDArray[np.float32]
    """(classes,)."""
    features: NDArray[np.float32]
    """(embed_dim,), what the head of the model reads."""


@dataclass(frozen=True)
class Predictor:
    """A trained model with the frame sampling and the crops of its evaluation."""

    config: RunConfig
    model: VideoMamba
    classes: tuple[str, ...]
    device: torch.device

    @classmethod
    def load(cls, checkpoint: Path | str, *, raw: bool = False) -> Predictor:
        """Load a model from a run directory, a checkpoint or a file of weights.

        With `raw`, take the last weights even if the run kept their moving average. Classes whose
        names the source does not know are called "class 0" and so on.
        Raises CheckpointError, WeightsError or ConfigError.
        """
        trained = open_trained(Path(checkpoint), raw=raw)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        unnamed = tuple(f"class {n}" for n in range(trained.config.model.num_classes))
        classes = trained.classes or unnamed
        return cls(trained.config, trained.model.to(device).eval(), classes, device)

    def __call__(self, video: Path | str) -> list[tuple[str, float]]:
        """Return (class, probability) of every class, most probable first.

        Raises DataError for an unreadable video.
        """
        return ranked(self.classes, self.whole(video).probabilities)

    def whole(self, video: Path | str) -> Answer:
        """Answer for a whole video, averaged over the views of evaluation.

        Memory is bounded however long the video is. Raises DataError for an unreadable video.
        """
        return self._answer(*read_chosen(Path(video), self._wanted))

    def windows(
        self, video: Path | str, window_s: float, stride_s: float | None = None
    ) -> Iterator[Moment]:
        """Classify windows of `window_s` seconds that start every `stride_s` (default: half of it).

        Each window is treated like a whole video, and the last one ends with the video. The video
        is decoded once, as it goes, and memory holds the frames of one window. Raises DataError.
        """
        stride_s = window_s / 2 if stride_s is None else stride_s
        if min(window_s, stride_s) < _SHORTEST_S:
            raise ConfigError(
                f"a window of {window_s:g} s every {stride_s:g} s: give {_SHORTEST_S:g} s or more"
            )
        for window in cut_windows(_timed(video), window_s, stride_s):
            wanted = self._wanted(len(window.pictures))
            yield Moment(window.start_s, window.end_s, *self._answer(window.pictures, wanted))

    def stream(
        self, video: Path | str, every: int | None = None, *, carry: bool = False
    ) -> Iterator[Moment]:
        """Classify as the frames come: after each step in time, from frames up to it.

        An answer rests on at most as many frames as a clip of training has, see `StaggeredStream`;
        with `carry`, on all since the start of the video, which training has not shown the model.

        `every`: frames of the video per frame of the model; the default is `data.stride` for the
        sampling dense, in which the model has seen frames at that distance.
        Raises ModelError unless the model's direction is "forward", ConfigError without `every` for
        another sampling, and DataError for an unreadable video.
        """
        kind = Stream if carry else StaggeredStream
        stream = kind(self.model, batch=self.config.eval.crops)
        every = self._every() if every is None else every
        start_s: float | None = None
        for number, picture in enumerate(_timed(video)):
            if number % every:
                continue
            start_s = picture.time_s if start_s is None else start_s
            # One frame each: (crops, 3, 1, S, S).
            logits = stream.push(self._views([picture.pixels], np.zeros((1, 1), np.int64)))
            if logits.shape[1] == 0:
                continue  # the tubelet is not full
            end_s = picture.time_s + every * picture.shown_s
            yield Moment(start_s, end_s, _mean_share(logits[:, -1]))
            start_s = None

    def _every(self) -> int:
        data = self.config.data
        if data.sampling != "dense":
            raise ConfigError(
                f"the model was trained on frames from all over a video (data.sampling="
                f"{data.sampling}), so it has no frame rate: give --every N, to take every N-th"
            )
        return data.stride

    def _wanted(self, total: int) -> NDArray[np.int64]:
        data, size = self.config.data, self.config.model
        return eval_frames(
            data.sampling, total, size.num_frames, data.stride, self.config.eval.clips
        )

    def _views(self, pictures: Sequence[NDArray[np.uint8]], wanted: NDArray[np.int64]) -> Tensor:
        """Normalised clips (clips * crops, 3, T, S, S) of the frames `wanted` (clips, T)."""
        size, crops = self.config.model.img_size, self.config.eval.crops
        views = [
            square_crops(np.stack([pictures[i] for i in clip]), size, crops) for clip in wanted
        ]
        data = self.config.data
        return normalize(torch.cat(views)[None].to(self.device), data.mean, data.std)

    @torch.no_grad()
    def _answer(self, pictures: Sequence[NDArray[np.uint8]], wanted: NDArray[np.int64]) -> Answer:
        features = self.model.features(self._views(pictures, wanted))
        mean: NDArray[np.float32] = features.float().mean(0).cpu().numpy()
        return Answer(_mean_share(self.model.head(features)), mean)


def ranked(classes: Sequence[str], shares: NDArray[np.float32]) -> list[tuple[str, float]]:
    """(class, probability) of every class, most probable first."""
    return sorted(zip(classes, shares.tolist(), strict=True), key=lambda pair: -pair[1])


def _mean_share(logits: Tensor) -> NDArray[np.float32]:
    """logits (views, classes) -> mean probabilities (classes,)."""
    shares: NDArray[np.float32] = F.softmax(logits.float(), dim=-1).mean(0).cpu().numpy()
    return shares


def read_chosen(
    path: Path, choose: Callable[[int], NDArray[np.int64]]
) -> tuple[list[NDArray[np.uint8]], NDArray[np.int64]]:
    """Read the frames that `choose(number of frames)` names.

    Returns pictures, and indices into them in the shape of what `choose` returned.
    Raises DataError as `decode_all` does.
    """
    held: list[NDArray[np.uint8]] = []
    total = 0
    for picture in _pictures(path):
        total += 1
        if total <= _HELD:
            held.append(picture)
        else:
            held.clear()
    wanted = choose(total)
    if total <= _HELD:
        return held, wanted
    numbers, places = np.unique(wanted, return_inverse=True)
    chosen, held = set(numbers.tolist()), []
    held = [picture for number, picture in enumerate(_pictures(path)) if number in chosen]
    return held, places.reshape(wanted.shape)


def decode_all(path: Path) -> NDArray[np.uint8]:
    """Decode all frames as `vmp data shard` would store them, but without its compression.

    Returns (T, H, W, 3) uint8 RGB.
    Raises DataError for a file that `vmp data shard` would leave out: one that is not a video, is
    damaged or changes its frame size.
    """
    return np.stack(list(_pictures(path)))


def _pictures(path: Path) -> Iterator[NDArray[np.uint8]]:
    try:
        yield from read_pictures(str(path))
    except UnreadableVideoError as error:
        raise DataError(f"{path}: cannot be used: {error}") from error


def _timed(path: Path | str) -> Iterator[TimedPicture]:
    try:
        yield from read_timed_pictures(str(path))
    except UnreadableVideoError as error:
        raise DataError(f"{path}: cannot be used: {error}") from error
