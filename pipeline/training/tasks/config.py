"""Configuration of the training tasks. Importing this module does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from model.operational import OPERATIONAL

Positive = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TeacherConfig(_Section):
    """A frozen model whose features the student learns to predict."""

    path: Annotated[Path, OPERATIONAL]
    """A run, a checkpoint or a file of weights, as `init_from` takes them. Or a TorchScript file
    (.pt or .ts) that takes clips (B, 3, T, S, S) and returns features (B, T, P, width), alone or
    with attention (B, T, P) over the patches. Or a .safetensors file with features (T, P, width)
    of every sample, named by its key. A run goes on only with a teacher of the same content."""
    width: int | None = Field(default=None, gt=0)
    """Width of the features; needed for a TorchScript file, compared with the file otherwise."""
    img_size: int | None = Field(default=None, gt=0)
    """Frame size S that a TorchScript file takes; null = that of the student. Clips are resized."""
    mean: tuple[float, float, float] | None = None
    """Mean of each channel that a TorchScript file expects; null = that of `data`."""
    std: tuple[Positive, Positive, Positive] | None = None
    """Standard deviation of each channel that a TorchScript file expects; null = that of `data`."""


class ClassificationConfig(_Section):
    """Cross-entropy over labelled clips or, with model.num_frames=1, over labelled images."""

    needs_labels: ClassVar[bool] = True

    kind: Literal["classification"] = "classification"
    """classification = labelled clips or images; distillation = the same plus the features of a
    teacher; masked = the features of a teacher alone, without labels, from a part of the clip."""


class DistillationConfig(_Section):
    """Cross-entropy plus 2 - 2 cos between the student's and a frozen teacher's tokens.

    The published recipe trains VideoMamba-M on ImageNet-1K this way, with S as the teacher.
    """

    needs_labels: ClassVar[bool] = True

    kind: Literal["distillation"]
    """Task of the run; see `classification`."""
    teacher: TeacherConfig
    weight: float = Field(default=1.0, gt=0)
    """Factor on the mean of 2 - 2 cos; that of the cross-entropy is 1."""


class MaskedConfig(_Section):
    """Pre-training without labels: the visible tokens predict the features of a frozen teacher.

    The teacher sees the whole clip and the student only the visible tokens (UMT, arXiv 2303.16058).
    """

    needs_labels: ClassVar[bool] = False

    kind: Literal["masked"]
    """Task of the run; see `classification`."""
    teacher: TeacherConfig
    mask_ratio: float = Field(default=0.8, ge=0, lt=1)
    """Share of the patches of each time step that the student does not see, rounded down."""
    mask: Literal["auto", "attention", "tubelet"] = "auto"
    """How visible patches are drawn: attention = at each time step, likelier where the teacher's
    attention is higher; tubelet = the same random patches at all time steps; auto = attention where
    the teacher gives it, else tubelet."""
    fidelity: Literal["corrected", "parity"] = "corrected"
    """What is aligned: corrected = the output of the final norm; parity = the residual stream
    before the last mixer is added, as the published code does by accident, so that the last block
    and the final norm are not trained."""


TaskConfig = Annotated[
    ClassificationConfig | DistillationConfig | MaskedConfig, Field(discriminator="kind")
]
