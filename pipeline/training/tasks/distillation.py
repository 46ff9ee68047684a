"""Distillation of the features of a frozen teacher into a classifier.

Source: VideoMamba (arXiv 2403.06977), section 3.3, which trains M from S this way.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model import VideoMamba
from model.distilled import DistilledVideoMamba
from pipeline.config import RunConfig
from pipeline.data.batch import Batch
from pipeline.training.tasks.classification import ClassificationTask
from pipeline.training.tasks.config import DistillationConfig
from pipeline.training.tasks.task import Forward, Report
from pipeline.training.tasks.teacher import Teacher


class DistillationTask(ClassificationTask):
    """Cross-entropy plus 2 - 2 cos between the tokens of student and teacher.

    It is evaluated as a classifier.
    """

    def __init__(
        self, config: RunConfig, task: DistillationConfig, teacher: Teacher, device: torch.device
    ) -> None:
        super().__init__(config, device)
        self.task = task
        self.teacher = teacher
        self.teacher_digest = teacher.digest

    def student(self, model: VideoMamba) -> VideoMamba:
        student = DistilledVideoMamba(model.config, self.teacher.width)
        student.load_state_dict(student.state_dict() | model.state_dict())
        return student

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Report]:
        """Return the mean loss, and the sums of loss, alignment (2 - 2 cos) and top-1."""
        clips, mix = self.mixed_clips(batch)
        seen = self.teacher(clips, batch)
        logits, tokens = forward(clips, drop_path_keep=self.drop_path_keep(batch), features=True)
        logits, weight = logits.float(), self.weight(batch)
        alignment = misalignment(tokens if seen.has_class_token else tokens[:, 1:], seen.tokens)
        losses = self.cross_entropy(logits, batch, mix) + self.task.weight * alignment
        sums = {
            "loss": (losses * weight).detach().sum(),
            "alignment": (alignment * weight).detach().sum(),
            "top1": self.correct(logits, batch, weight),
        }
        return (losses * weight).mean(), Report(weight.sum(), sums)


def misalignment(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean of 2 - 2 cos over the tokens (B, L, w) of each clip: (B,) float32."""
    return (2 - 2 * F.cosine_similarity(student.float(), teacher.float(), dim=-1)).mean(1)
