"""The task of a run."""

from __future__ import annotations

import torch

from pipeline.config import RunConfig
from pipeline.training.tasks.classification import ClassificationTask
from pipeline.training.tasks.distillation import DistillationTask
from pipeline.training.tasks.masked import MaskedTask
from pipeline.training.tasks.task import Task
from pipeline.training.tasks.teacher import open_teacher


def build_task(config: RunConfig, device: torch.device) -> Task:
    """Build the task that `config.task` chooses, with its teacher on the device.

    Collective: call on every rank. Raises what `open_teacher` raises.
    """
    task = config.task
    if task.kind == "classification":
        return ClassificationTask(config, device)
    teacher = open_teacher(config, device)
    if task.kind == "distillation":
        return DistillationTask(config, task, teacher, device)
    return MaskedTask(config, task, teacher, device)
