"""How gradients travel from the head back to the pixels, and to each frame.

Two figures tell whether a model can begin to learn:

- the norm of the loss's gradient at the weights of the patch embedding;
- historical decay: how strongly the vector that the head reads depends on the tokens of each frame.
  It is the root mean square over clips of the Frobenius norm of the Jacobian d read / d tokens of
  frame t, estimated with one Gaussian vector v per clip, since E |J^T v|^2 = |J|_F^2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model import VideoMamba
from pipeline.data.batch import Batch
from pipeline.training.tasks.task import Task


class Signal(NamedTuple):
    """A probe of one model at one step."""

    patch_gradient: float
    """L2 norm of d loss / d patch_embed.proj.weight."""
    by_frame: list[float]
    """Root mean square of |d read / d tokens of frame t|_F, one per step in time."""


def probe(model: VideoMamba, task: Task, batch: Batch) -> Signal:
    """Measure a model in fp32 on one batch. Gradients and the mode of the model are left as were.

    The generator of the vectors is seeded here, so probing changes no other random draw.
    """
    tokens: list[Tensor] = []
    read: list[Tensor] = []

    def keep_tokens(_: nn.Module, __: object, output: Tensor) -> None:
        tokens.append(output)

    def keep_read(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        read.append(inputs[0])

    hooks = [
        model.patch_embed.register_forward_hook(keep_tokens),
        model.head.register_forward_pre_hook(keep_read),
    ]
    was_training = model.training
    model.eval()
    try:
        loss, _ = task(model, batch)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(read[0].shape, generator=generator)
    (patch,) = torch.autograd.grad(loss, model.patch_embed.proj.weight, retain_graph=True)
    (jacobian,) = torch.autograd.grad((read[0] * vectors).sum(), tokens[0])
    # (B, T, P, d): squares are summed over a frame's tokens and averaged over clips.
    by_frame = jacobian.square().sum(dim=(2, 3)).mean(dim=0).sqrt()
    return Signal(float(patch.norm()), by_frame.tolist())
