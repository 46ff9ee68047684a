"""Masked pre-training: visible tokens predict the features of a frozen teacher, without labels.

Source: UMT (arXiv 2303.16058), section 3, as VideoMamba (arXiv 2403.06977) uses it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from model import VideoMamba
from model.masked import MaskedVideoMamba, select
from pipeline.config import RunConfig
from pipeline.data.batch import Batch, to_device
from pipeline.errors import ConfigError
from pipeline.training.distributed import sum_over_ranks
from pipeline.training.tasks.config import MaskedConfig
from pipeline.training.tasks.distillation import misalignment
from pipeline.training.tasks.masks import visible_by_attention, visible_tubelets
from pipeline.training.tasks.task import ClipTask, Forward, Report, draws
from pipeline.training.tasks.teacher import Features, Teacher


class MaskedTask(ClipTask):
    """2 - 2 cos between the student's visible tokens and the teacher's tokens at their places."""

    score = "similarity"

    def __init__(
        self, config: RunConfig, task: MaskedConfig, teacher: Teacher, device: torch.device
    ) -> None:
        super().__init__(config, device)
        if task.mask == "attention" and not teacher.gives_attention:
            raise ConfigError(
                f"task.mask=attention: {task.teacher.path} gives no attention: set "
                "task.mask=tubelet, or take a teacher that does"
            )
        self.task = task
        self.teacher = teacher
        self.teacher_digest = teacher.digest

    def student(self, model: VideoMamba) -> VideoMamba:
        parity = self.task.fidelity == "parity"
        student = MaskedVideoMamba(model.config, self.teacher.width, before_last_mixer=parity)
        backbone = {k: v for k, v in model.state_dict().items() if not k.startswith("head.")}
        student.load_state_dict(student.state_dict() | backbone)
        return student

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Report]:
        """Return the mean loss, and the sum of losses, see `Task`."""
        losses = self._losses(forward, batch, self.drop_path_keep(batch))
        weight = self.weight(batch)
        losses = losses * weight
        return losses.mean(), Report(weight.sum(), {"loss": losses.detach().sum()})

    @torch.no_grad()
    def evaluate(self, forward: Forward, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the mean cosine similarity, the loss and num_samples. Collective.

        The masks depend on the samples alone, so that all evaluations of a run use the same.
        """
        totals = torch.zeros(2, dtype=torch.float64)
        for batch in batches:
            losses = self._losses(forward, batch, None).view(len(batch.keys), -1).mean(1)
            weight = batch.weight.double()
            totals += torch.stack([(losses.cpu().double() * weight).sum(), weight.sum()])
        loss, count = sum_over_ranks(totals).tolist()
        loss /= max(count, 1.0)
        return {"similarity": 1 - loss / 2, "loss": loss, "num_samples": count}

    def _losses(self, forward: Forward, batch: Batch, keep: Tensor | None) -> Tensor:
        """Return 2 - 2 cos (B * V,) of every view."""
        clips = self.clips(batch)
        seen = self.teacher(clips, batch)
        visible = self.visible(batch, seen)
        tokens = forward(clips, drop_path_keep=keep, visible=visible)
        if seen.has_class_token:
            return misalignment(tokens, select(seen.tokens, visible))
        index = visible[:, :, None].expand(-1, -1, seen.tokens.shape[-1])
        return misalignment(tokens[:, 1:], seen.tokens.gather(1, index))

    def visible(self, batch: Batch, seen: Features) -> Tensor:
        """Draw the visible patches (B * V, n) int64 from (seed, epoch, key, view)."""
        model, ratio = self.config.model, self.task.mask_ratio
        steps, patches = model.num_steps, model.patches_per_frame
        if seen.attention is None or self.task.mask == "tubelet":
            drawn = torch.from_numpy(draws(batch, self.seed, "mask", (patches,)))
            return visible_tubelets(to_device(drawn, self.device), steps, ratio)
        drawn = torch.from_numpy(draws(batch, self.seed, "mask", (steps, patches)))
        return visible_by_attention(to_device(drawn, self.device), seen.attention, ratio)
