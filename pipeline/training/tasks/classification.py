"""Classification of labelled clips or, with one frame, of labelled images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.batch import Batch, to_device
from pipeline.data.mix import Mix, draw_mix, mix_clips, mix_targets
from pipeline.inference.evaluate import evaluate
from pipeline.training.tasks.task import ClipTask, Forward, Report


class ClassificationTask(ClipTask):
    """Cross-entropy over the views of labelled clips.

    A model of direction "forward" answers after each step in time. Its loss is the mean over the
    later half of the steps: a stream answers there, and one frame says little about a motion.
    """

    score = "top1"

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Report]:
        """Return the mean loss and the sums of loss and top-1, see `Task`."""
        clips, mix = self.mixed_clips(batch)
        answers = self._answers(forward, clips, batch)
        logits = answers[-1]
        weight = self.weight(batch)
        of_answers = [self.cross_entropy(each, batch, mix) for each in answers]
        losses = torch.stack(of_answers).mean(0) * weight
        sums = {"loss": losses.detach().sum(), "top1": self.correct(logits, batch, weight)}
        return losses.mean(), Report(weight.sum(), sums)

    def evaluate(self, forward: Forward, batches: Iterable[Batch]) -> dict[str, float]:
        """Return top1, top5, loss and num_samples. Collective."""
        return evaluate(forward, batches, self.data, self.device).metrics()

    def _answers(self, forward: Forward, clips: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """Return the logits (B * V, classes) float32 that count, in order of time."""
        keep = self.drop_path_keep(batch)
        if self.config.model.direction == "bidirectional":
            return (forward(clips, drop_path_keep=keep).float(),)
        answers = forward(clips, drop_path_keep=keep, every_step=True).float().unbind(1)
        return tuple(answers[len(answers) // 2 :])

    def mixed_clips(self, batch: Batch) -> tuple[Tensor, Mix | None]:
        """Return the clips (B * V, 3, T, S, S) after mixing, and how they were mixed."""
        clips = self.clips(batch)
        if not self.data.mix.is_on:
            return clips, None
        drawn = draw_mix(batch, self.data.mix, self.seed)
        mix = Mix(*(to_device(tensor, self.device) for tensor in drawn))
        return mix_clips(clips, mix, batch.clips.shape[1]), mix

    def cross_entropy(self, logits: Tensor, batch: Batch, mix: Mix | None) -> Tensor:
        """Return the smoothed cross-entropy (B * V,) of logits (B * V, classes) float32."""
        smoothing = self.config.loss.label_smoothing
        if mix is None:
            label = self._label(batch)
            return F.cross_entropy(logits, label, reduction="none", label_smoothing=smoothing)
        views = batch.clips.shape[1]
        label = to_device(batch.label, self.device)
        targets = mix_targets(label, mix, views, logits.shape[-1], smoothing)
        return F.cross_entropy(logits, targets, reduction="none")

    def correct(self, logits: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        """Return the weight of the views (0-dim) whose label has the largest logit."""
        return ((logits.detach().argmax(-1) == self._label(batch)) * weight).sum()

    def _label(self, batch: Batch) -> Tensor:
        return to_device(batch.label, self.device).repeat_interleave(batch.clips.shape[1])
