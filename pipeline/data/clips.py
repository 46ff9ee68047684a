"""Making the clips of a batch from index rows, inside loader processes: read, decode, crop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data import decode_foreign
from pipeline.data.augment import Frames, augment, square_crops
from pipeline.data.batch import Batch
from pipeline.data.config import DataConfig
from pipeline.data.decode import Decoder, decode_frames
from pipeline.data.errors import SampleError
from pipeline.data.order import Slot
from pipeline.data.randaugment import rand_augment, random_erase
from pipeline.data.randomness import sample_rng
from pipeline.data.reader import Sample, ShardReader
from pipeline.data.sampling import eval_frames, train_frames

Request = tuple[Slot, Sample | None]
"""A place in a batch and the sample that fills it; None is padding."""


def as_batch(requests: Sequence[Request], clips: Tensor, bad: Mapping[int, str]) -> Batch:
    """Build a batch of filled clips, in which rows of `bad` and padding have weight 0.

    Args:
        clips: (B, V, 3, T, S, S) uint8, pinned here on a machine with CUDA.
        bad: row -> reason of the unreadable samples.
    """
    slots, samples = zip(*requests, strict=True)
    counts = [sample is not None and row not in bad for row, sample in enumerate(samples)]
    keys = ["" if sample is None else sample.key for sample in samples]
    small = (
        torch.tensor([0 if sample is None else sample.label for sample in samples]),
        torch.tensor(counts, dtype=torch.float32),
        torch.tensor([slot.epoch for slot in slots]),
        torch.tensor([slot.position for slot in slots]),
    )
    if torch.cuda.is_available():
        clips = clips.pin_memory()
    return Batch(clips, *small, keys, [(keys[row], reason) for row, reason in bad.items()])


def frame_decoder(name: str, *, adopted: bool = False) -> Decoder:
    """Return the decoder named `name`, or for `adopted` videos the one that takes all forms.

    Raises DataError when it cannot be used here.
    """
    if adopted:
        return decode_foreign.decode_frames
    if name == "pyav":
        return decode_frames
    from pipeline.data import decode_torchcodec  # torchcodec is optional

    return decode_torchcodec.decode_frames


@dataclass(frozen=True)
class ClipMaker(ABC):
    """Base class of training and evaluation clips: (V, 3, T, S, S) uint8 per sample."""

    reader: ShardReader
    config: DataConfig
    img_size: int
    num_frames: int
    seed: int

    @property
    @abstractmethod
    def num_views(self) -> int:
        """Number of views V of each sample."""

    @abstractmethod
    def make(self, slot: Slot, sample: Sample, out: Tensor) -> None:
        """Write all views of one sample to `out`: (V, 3, T, S, S) uint8.

        Raises SampleError or OSError when the sample cannot be read.
        """

    def decode(self, sample: Sample, wanted: NDArray[np.int64]) -> Frames:
        """Decode the wanted frames of the sample: (len(wanted), H, W, 3) uint8."""
        decode_frames = frame_decoder(self.config.decoder, adopted=self.reader.adopted)
        return decode_frames(self.reader.read(sample), wanted, sample.keyframes)

    def batch_shape(self, samples: int) -> tuple[int, ...]:
        return (samples, self.num_views, 3, self.num_frames, self.img_size, self.img_size)

    def fill(self, requests: Sequence[Request], out: Tensor) -> dict[int, str]:
        """Write a batch of clips to `out`: (B, V, 3, T, S, S) uint8, with zeros for missing clips.

        Returns row -> reason of the unreadable samples. Raises DataError when the shards differ
        from what was sealed.
        """
        bad: dict[int, str] = {}
        for row, (slot, sample) in enumerate(requests):
            if sample is None:
                out[row] = 0
                continue
            try:
                self.make(slot, sample, out[row])
            except (SampleError, OSError) as error:
                out[row] = 0
                bad[row] = str(error)
        return bad


@dataclass(frozen=True)
class TrainClips(ClipMaker):
    """Training clips: random frames, decoded once, in `config.views` random views."""

    @property
    def num_views(self) -> int:
        return self.config.views

    def make(self, slot: Slot, sample: Sample, out: Tensor) -> None:
        config = self.config
        wanted = train_frames(
            config.sampling,
            sample.frames,
            self.num_frames,
            config.stride,
            self._rng(slot, sample, 0, "frames"),
        )
        self.cut(slot, sample, self.decode(sample, wanted), out)

    def cut(self, slot: Slot, sample: Sample, frames: Frames, out: Tensor) -> None:
        """Write random views of decoded frames (T, H, W, 3) to `out`: (V, 3, T, S, S) uint8."""
        for view in range(self.config.views):
            self._view(frames, slot, sample, view, out[view])

    def frames_of_stored(self, slot: Slot, sample: Sample, stored: int) -> NDArray[np.int64]:
        """Choose the clip's frames among the `stored` frames that a cache keeps: (T,) int64."""
        if stored == self.num_frames:
            return np.arange(stored)
        # A dense cache keeps only every stride-th frame, so the stride here is 1.
        rng = self._rng(slot, sample, 0, "frames")
        return train_frames(self.config.sampling, stored, self.num_frames, 1, rng)

    def _view(self, frames: Frames, slot: Slot, sample: Sample, view: int, out: Tensor) -> None:
        config = self.config
        rng = self._rng(slot, sample, view, "cut")
        augment(frames, config.crop, config.hflip, self.img_size, rng, out)
        if config.randaugment.num_ops:
            rng = self._rng(slot, sample, view, "randaugment")
            out.copy_(rand_augment(out, config.randaugment, rng))
        if config.erasing.probability:
            rng = self._rng(slot, sample, view, "erase")
            out.copy_(random_erase(out, config.erasing, config.mean, config.std, rng))

    def _rng(self, slot: Slot, sample: Sample, view: int, purpose: str) -> np.random.Generator:
        return sample_rng(self.seed, slot.epoch, sample.key, view, purpose)


@dataclass(frozen=True)
class EvalClips(ClipMaker):
    """Evaluation clips: `clips` fixed clips in `crops` squares each, ordered by clip."""

    clips: int = 1
    crops: int = 1
    shuffle_frames: bool = False

    @property
    def num_views(self) -> int:
        return self.clips * self.crops

    def make(self, slot: Slot, sample: Sample, out: Tensor) -> None:
        wanted = eval_frames(
            self.config.sampling, sample.frames, self.num_frames, self.config.stride, self.clips
        )
        if self.shuffle_frames:
            for clip, frames in enumerate(wanted):
                sample_rng(self.seed, 0, sample.key, clip, "shuffle_frames").shuffle(frames)
        decoded = self.decode(sample, wanted.ravel())
        squares = square_crops(decoded, self.img_size, self.crops)
        for clip, views in enumerate(torch.split(squares, self.num_frames, dim=2)):
            out[clip * self.crops : (clip + 1) * self.crops] = views
