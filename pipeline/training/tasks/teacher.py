"""The frozen teachers of distillation and masked pre-training, and the choice among them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.config import RunConfig
from pipeline.data.batch import Batch
from pipeline.errors import ConfigError


class Features(NamedTuple):
    """What a teacher says about clips, on the student's grid of T steps by P patches."""

    tokens: Tensor
    """(B, T * P, w) floating point, frame by frame; (B, 1 + T * P, w) with a class token first."""
    has_class_token: bool
    attention: Tensor | None = None
    """(B, T, P), not negative: how much each patch matters; None if the teacher does not say."""


class Teacher(Protocol):
    """A source of features that does not learn."""

    width: int
    """Width w of its tokens."""
    gives_attention: bool
    digest: str
    """The sha256 of what decides its features."""

    def __call__(self, clips: Tensor, batch: Batch) -> Features:
        """Return the features of clips (B, 3, T, S, S), as the student gets them, of `batch`."""
        ...


def open_teacher(config: RunConfig, device: torch.device) -> Teacher:
    """Open the teacher that `config.task` names. Collective: call on every rank.

    Torch's random generator is left as it was, so that a student begins with the same weights as a
    plain model of the same seed.
    Raises ConfigError, CheckpointError or WeightsError.
    """
    from pipeline.training.tasks.stored_features import StoredFeatures, holds_features
    from pipeline.training.tasks.teacher_network import ModelTeacher, ScriptTeacher, is_script

    assert config.task.kind != "classification"
    teacher = config.task.teacher
    with torch.random.fork_rng(devices=[]):
        if is_script(teacher.path):
            return ScriptTeacher(config, teacher, device)
        if holds_features(teacher.path):
            return StoredFeatures(config, teacher, device)
        return ModelTeacher(config, teacher, device)


def check_teacher(config: RunConfig) -> None:
    """Raise the error that a run with this teacher would raise, before it is started.

    A TorchScript file is not run, since it may need the GPU of another machine.
    """
    from pipeline.training.tasks.teacher_network import is_script

    assert config.task.kind != "classification"
    path = config.task.teacher.path
    if not is_script(path):
        open_teacher(config, torch.device("cpu"))
    elif not path.is_file():
        raise ConfigError(f"task.teacher.path={path}: no such file")


def digest_of(named: Iterable[tuple[str, Tensor]]) -> str:
    """Return the sha256 of names, shapes and values of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(named, key=lambda item: item[0]):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
