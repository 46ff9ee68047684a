"""A teacher whose features were computed beforehand: a safetensors file with a tensor per sample.

Only clips that are cut the same way in every epoch have features that can be stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.checkpoint.layout import file_sha256
from pipeline.config import RunConfig
from pipeline.data.batch import Batch, to_device
from pipeline.data.errors import DataError
from pipeline.errors import ConfigError
from pipeline.training.tasks.config import TeacherConfig
from pipeline.training.tasks.teacher import Features

_OF_A_MODEL = "patch_embed.proj.weight"


def holds_features(path: Path) -> bool:
    """Whether `path` is a safetensors file without the weights of a model."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return not any(name.endswith(_OF_A_MODEL) for name in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError):
        return False  # whoever reads it as weights says what is wrong with it


class StoredFeatures:
    """Features (T, P, w) by sample key."""

    gives_attention = False

    def __init__(self, config: RunConfig, teacher: TeacherConfig, device: torch.device) -> None:
        data = config.data
        if data.crop.kind != "none" or data.hflip or data.mix.is_on:
            raise ConfigError(
                f"task.teacher.path={teacher.path}: holds features of whole samples, which belong "
                "to other pixels once a clip is cropped, mirrored or mixed: set "
                "data.crop.kind=none data.hflip=0 and data.mix off, or use a network as teacher"
            )
        self._path, self._device = teacher.path, device
        self._grid = (config.model.num_steps, config.model.patches_per_frame)
        self._file = cast(Any, safe_open(teacher.path, framework="pt"))
        self._keys = frozenset(self._file.keys())
        if not self._keys:
            raise ConfigError(f"task.teacher.path={teacher.path}: holds no tensor")
        first = min(self._keys)
        self.width = self._file.get_slice(first).get_shape()[-1]
        if teacher.width not in (None, self.width):
            raise ConfigError(
                f"task.teacher.width={teacher.width}, but {teacher.path} holds width {self.width}"
            )
        self._read(first)
        self.digest = file_sha256(teacher.path)

    def __call__(self, clips: Tensor, batch: Batch) -> Features:
        """Return the features of the samples of `batch`, the same for all views of a sample.

        Raises DataError for a sample that the file does not hold.
        """
        views = batch.clips.shape[1]
        nothing = torch.zeros(*self._grid, self.width)
        rows = [self._read(key) if key else nothing for key in batch.keys]  # padding has no key
        tokens = to_device(torch.stack(rows).flatten(1, 2), self._device)
        return Features(tokens.repeat_interleave(views, 0), has_class_token=False)

    def _read(self, key: str) -> Tensor:
        if key not in self._keys:
            raise DataError(
                f"{self._path}: has no features of sample {key}: it must hold one tensor per "
                "sample, named by its key, of the training and the validation split"
            )
        tensor: Tensor = self._file.get_tensor(key)
        if tuple(tensor.shape) != (*self._grid, self.width):
            raise ConfigError(
                f"{self._path}: the features of sample {key} have shape {tuple(tensor.shape)}, "
                f"expected {(*self._grid, self.width)} for the model's {self._grid[0]} steps of "
                f"{self._grid[1]} patches"
            )
        return tensor.float()
