"""The clips of a study: rendered once, kept in memory, dealt in the order that a seed gives.

The clips are the pictures of `data_prep.synthetic` before encoding. The study bypasses shards and
loader, whose decoding would cost more than training such small models.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep.durable import publish
from data_prep.synthetic import SynthOptions, picture
from data_prep.synthetic_events import EventOptions
from pipeline.data.batch import Batch
from pipeline.data.order import ElasticBatches, Slot
from pipeline.data.randomness import shuffled
from pipeline.study.design import DataSet, Design

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Clips:
    """Labelled clips of one split."""

    pixels: Tensor
    """(n, 3, T, H, W) uint8."""
    labels: Tensor
    """(n,) int64."""
    classes: int
    split: str

    def __len__(self) -> int:
        return len(self.labels)

    def in_order(self, size: int) -> Iterator[Batch]:
        """Every clip once."""
        for start in range(0, len(self), size):
            rows = range(start, min(start + size, len(self)))
            yield self._batch([Slot(0, row, row) for row in rows])

    def dealt(self, seed: int, size: int) -> Iterator[Batch]:
        """Endless batches, in the order in which a run of one rank with this seed trains."""

        def order(epoch: int) -> NDArray[np.int64]:
            return shuffled(len(self), "samples", seed, epoch)

        for slots in ElasticBatches(order, len(self), global_batch=size, micro_batch=size):
            yield self._batch(slots)

    def _batch(self, slots: list[Slot]) -> Batch:
        """The batch that a loader would give: clips of one view."""
        rows = torch.tensor([slot.row for slot in slots])
        return Batch(
            clips=self.pixels[rows].unsqueeze(1),
            label=self.labels[rows],
            weight=torch.ones(len(slots)),
            epoch=torch.tensor([slot.epoch for slot in slots]),
            position=torch.tensor([slot.position for slot in slots]),
            keys=[f"{self.split}-{slot.row}" for slot in slots],
            bad=[],
        )


def load_clips(folder: Path, design: Design, data: str, split: str) -> Clips:
    """Read the clips of a split from `folder`, or render and keep them there.

    Several processes may do so at once, since all of them write the same bytes.
    """
    options = _options(design.data[data], design)
    count = {
        "train": design.train_clips,
        "val": design.val_clips,
        "test": design.test_clips,
    }[split]
    # The name depends on what decides the pictures, so clips of other options are never taken.
    digest = hashlib.sha256(f"{options.model_dump_json()} {count}".encode()).hexdigest()[:12]
    path = folder / f"{data}-{split}-{digest}.npy"
    if path.exists():
        images = np.load(path)
    else:
        number = SPLITS.index(split)
        images = np.stack([picture(options, number, index) for index in range(count)])
        folder.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.save(content, images)
        publish(path, content.getvalue())
    labels = torch.arange(count) % len(options.classes)
    pixels = torch.from_numpy(images).permute(0, 4, 1, 2, 3).contiguous()
    return Clips(pixels, labels, len(options.classes), split)


def _options(data: DataSet, design: Design) -> SynthOptions:
    made = EventOptions if data.kind == "events" else SynthOptions
    return made(size=design.size, frames=data.frames)
