"""What is read, which frames of it, and how they are cut and jittered."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.operational import OPERATIONAL

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class CropConfig(_Frozen):
    """The spatial cut of a training clip; evaluation resizes the short side and cuts squares."""

    kind: Literal["random_resized", "random", "none"] = "random_resized"
    """random_resized: a box of random area and aspect ratio; random: short side scaled by a random
    factor, then a random square; none: short side to the image size, centre square."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Area of the box relative to the frame (random_resized)."""
    ratio: tuple[float, float] = (0.75, 4 / 3)
    """Width / height of the box (random_resized)."""
    short_side: tuple[float, float] = (1.0, 1.25)
    """Short side before the cut, in units of the image size (random)."""

    @model_validator(mode="after")
    def _ordered(self) -> CropConfig:
        for name in ("scale", "ratio", "short_side"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be 0 < low <= high, not {low, high}")
        if self.scale[1] > 1:
            raise ValueError(f"scale cannot exceed the whole frame, 1.0, not {self.scale[1]}")
        if self.short_side[0] < 1:
            raise ValueError("short_side below 1.0 leaves no room for the square")
        return self


class RandAugmentConfig(_Frozen):
    """Random colour and geometry changes, the same for every frame of a clip."""

    num_ops: int = Field(0, ge=0)
    """Operations drawn per clip, each applied with probability 0.5; 0: none."""
    magnitude: float = Field(7.0, ge=0, le=10)
    """Mean strength of an operation, from 0 (no change) to 10."""
    std: float = Field(0.5, ge=0)
    """Standard deviation of the magnitude."""


class ErasingConfig(_Frozen):
    """One box through all frames of a clip is replaced by noise."""

    probability: Probability = 0.0
    """Share of the clips that lose a box."""
    area: tuple[float, float] = (0.02, 1 / 3)
    """Relative to the frame."""
    ratio: tuple[float, float] = (0.3, 10 / 3)
    """Height / width."""


class MixConfig(_Frozen):
    """Mixup and CutMix of samples at neighbouring positions; both 0: none."""

    mixup_alpha: float = Field(0.0, ge=0)
    """Both parameters of the Beta distribution of the share."""
    cutmix_alpha: float = Field(0.0, ge=0)
    """Both parameters of the Beta distribution of the area that is pasted."""
    probability: Probability = 1.0
    """Share of pairs that are mixed."""
    switch_probability: Probability = 0.5
    """Share of CutMix among them when both are on."""

    @property
    def is_on(self) -> bool:
        return self.probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


class DataConfig(_Frozen):
    """Everything about the data but the clip's size, which belongs to the model."""

    train: Annotated[Path | str, OPERATIONAL]
    """Shard directory (or fsspec URL) to train on."""
    train_split: str = "train"
    """Split of `train` to train on."""
    val: Annotated[Path | str | None, OPERATIONAL] = None
    """Shard directory to evaluate on; None: the same as `train`."""
    val_split: str = "val"
    """Split of `val` to evaluate on."""

    sampling: Literal["tsn", "dense", "segment"] = "tsn"
    """tsn: one random frame per equal part of the video; dense: consecutive frames `stride` apart;
    segment: as tsn, with evaluation clips interleaved (Something-Something)."""
    stride: int = Field(4, ge=1)
    """Frames from one sampled frame to the next (dense)."""

    crop: CropConfig = CropConfig()
    hflip: Probability = 0.5
    """Probability of a mirrored clip; 0 for classes that tell left from right."""
    randaugment: RandAugmentConfig = RandAugmentConfig()
    erasing: ErasingConfig = ErasingConfig()
    mix: MixConfig = MixConfig()
    views: int = Field(1, ge=1)
    """Augmentations of the same decoded frames per sample and step (repeated augmentation)."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of each channel (R, G, B), subtracted from pixels scaled to 0..1."""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """Of each channel (R, G, B), by which the difference is divided."""

    shuffle_window_shards: int = Field(0, ge=0)
    """Samples are shuffled over this many (shuffled) shards at a time; 0: over all. Small windows
    read slow storage nearly in sequence."""
    verify_reads: Annotated[bool, OPERATIONAL] = True
    """Compare every sample's sha256 with the index (about 0.5 ms per MB)."""
    read_attempts: Annotated[int, OPERATIONAL] = Field(4, ge=1)
    """Reads of a sample, with growing pauses (0.1 s, 0.4 s, ...), before it counts as bad."""
    cache_dir: Annotated[Path | None, OPERATIONAL] = None
    """Node-local directory for whole shards of a remote data set; None: a request per sample."""
    cache_gib: Annotated[float, OPERATIONAL] = Field(100, gt=0)
    """Size of `cache_dir`; the least recently used shards make room."""
    max_bad_samples: Annotated[int, OPERATIONAL] = Field(100, ge=0)
    """Unreadable samples one rank accepts, as zero-weight samples, before the run stops."""

    reader: Literal["decode", "ffcv"] = "decode"
    """Where training clips come from: the videos, or `ffcv_cache`. Evaluation always decodes."""
    ffcv_cache: Annotated[Path | None, OPERATIONAL] = None
    """Output directory of `vmp data cache`."""
    decoder: Annotated[Literal["pyav", "torchcodec"], OPERATIONAL] = "pyav"
    """Both give the same frames; torchcodec needs its package and FFmpeg's shared libraries."""
    workers: Annotated[int, OPERATIONAL] = Field(2, ge=0)
    """Loader processes per rank; 0 decodes in the training process."""
    prefetch: Annotated[int, OPERATIONAL] = Field(2, ge=1)
    """Micro-batches every worker prepares ahead."""
    worker_start: Annotated[Literal["forkserver", "spawn", "fork"], OPERATIONAL] = "forkserver"
    """How loader processes begin; fork is quickest but copies the state of gloo, NCCL and CUDA."""

    @property
    def val_location(self) -> Path | str:
        return self.train if self.val is None else self.val
