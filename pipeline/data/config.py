"""Configuration of the data: its source, the choice of frames, cropping and augmentation."""

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
    """Spatial crop of training clips. Evaluation resizes the short side and cuts squares."""

    kind: Literal["random_resized", "random", "none"] = "random_resized"
    """random_resized = a box of random area and aspect ratio; random = the short side scaled by a
    random factor, then a random square; none = the short side scaled to the image size, then the
    centre square."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest area of the box, relative to the frame (random_resized)."""
    ratio: tuple[float, float] = (0.75, 4 / 3)
    """Smallest and largest width / height of the box (random_resized)."""
    short_side: tuple[float, float] = (1.0, 1.25)
    """Smallest and largest short side before the crop, in units of the image size (random)."""

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
    """Operations drawn per clip, each applied with probability 0.5; 0 = no RandAugment."""
    magnitude: float = Field(7.0, ge=0, le=10)
    """Mean magnitude of an operation, from 0 (weakest) to 10."""
    std: float = Field(0.5, ge=0)
    """Standard deviation of the magnitude."""


class ErasingConfig(_Frozen):
    """Random erasing: a box through all frames of a clip is replaced by noise."""

    probability: Probability = 0.0
    """Probability that a clip loses a box."""
    area: tuple[float, float] = (0.02, 1 / 3)
    """Smallest and largest area of the box, relative to the frame."""
    ratio: tuple[float, float] = (0.3, 10 / 3)
    """Smallest and largest height / width of the box."""


class MixConfig(_Frozen):
    """Mixup and CutMix of samples at neighbouring positions; with both alphas 0, no mixing."""

    mixup_alpha: float = Field(0.0, ge=0)
    """Both parameters of the Beta distribution of the mixing share; 0 = no mixup."""
    cutmix_alpha: float = Field(0.0, ge=0)
    """Both parameters of the Beta distribution of the area that is kept; 0 = no CutMix."""
    probability: Probability = 1.0
    """Probability that a pair is mixed."""
    switch_probability: Probability = 0.5
    """Probability of CutMix rather than mixup when both are on."""

    @property
    def is_on(self) -> bool:
        return self.probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


class DataConfig(_Frozen):
    """Everything about the data except the size of a clip, which the model section sets."""

    train: Annotated[Path | str, OPERATIONAL]
    """Shard directory (or fsspec URL) to train on."""
    train_split: str = "train"
    """Split of `train` to train on."""
    val: Annotated[Path | str | None, OPERATIONAL] = None
    """Shard directory (or fsspec URL) to evaluate on; null = the same as `train`."""
    val_split: str = "val"
    """Split of `val` to evaluate on."""

    sampling: Literal["tsn", "dense", "segment"] = "tsn"
    """How frames are chosen: tsn = one random frame from each equal part of the video; dense =
    frames `stride` apart; segment = as tsn, with interleaved evaluation clips
    (Something-Something)."""
    stride: int = Field(4, ge=1)
    """Distance between sampled frames, in frames (dense)."""

    crop: CropConfig = CropConfig()
    hflip: Probability = 0.5
    """Probability that a clip is mirrored; use 0 if classes depend on left and right."""
    randaugment: RandAugmentConfig = RandAugmentConfig()
    erasing: ErasingConfig = ErasingConfig()
    mix: MixConfig = MixConfig()
    views: int = Field(1, ge=1)
    """Augmented views made of each decoded sample per step (repeated augmentation)."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of each channel (R, G, B), subtracted from pixels scaled to [0, 1]."""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel (R, G, B), by which the difference is divided."""

    shuffle_window_shards: int = Field(0, ge=0)
    """Shuffle the shards, then the samples within this many shards at a time; 0 = shuffle all
    samples. With a small window, slow storage is read almost sequentially."""
    verify_reads: Annotated[bool, OPERATIONAL] = True
    """Compare the sha256 of every sample that is read with the index."""
    read_attempts: Annotated[int, OPERATIONAL] = Field(4, ge=1)
    """How often a sample is read, with growing pauses (0.1 s, 0.4 s, ...), before it counts as
    unreadable."""
    cache_dir: Annotated[Path | None, OPERATIONAL] = None
    """Node-local directory for whole shards of a remote data set; null = one request per sample."""
    cache_gib: Annotated[float, OPERATIONAL] = Field(100, gt=0)
    """Largest size of `cache_dir`; the least recently used shards are deleted to make room."""
    max_bad_samples: Annotated[int, OPERATIONAL] = Field(100, ge=0)
    """How many unreadable samples a rank replaces by zero-weight samples before the run fails."""

    reader: Literal["decode", "ffcv"] = "decode"
    """Source of training clips: decode = the videos, ffcv = `ffcv_cache`. Evaluation always
    decodes."""
    ffcv_cache: Annotated[Path | None, OPERATIONAL] = None
    """Directory that `vmp data cache` wrote; needed with reader=ffcv."""
    decoder: Annotated[Literal["pyav", "torchcodec"], OPERATIONAL] = "pyav"
    """Video decoder. Both give the same frames; torchcodec needs its package and FFmpeg's shared
    libraries."""
    workers: Annotated[int, OPERATIONAL] = Field(2, ge=0)
    """Loader processes per rank; 0 = decode in the training process."""
    prefetch: Annotated[int, OPERATIONAL] = Field(2, ge=1)
    """Micro-batches that each worker prepares in advance."""
    worker_start: Annotated[Literal["forkserver", "spawn", "fork"], OPERATIONAL] = "forkserver"
    """How loader processes start; fork is the fastest but copies the state of gloo, NCCL and
    CUDA."""

    @property
    def val_location(self) -> Path | str:
        return self.train if self.val is None else self.val
