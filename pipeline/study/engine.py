"""The study's plain training engine, with the interface of the one that wraps DeepSpeed.

A process of a study trains small models on one CPU core, where ZeRO has nothing to partition and
costs more than the step. The arithmetic of a step is that of `pipeline.training.engine.Engine`.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from model import VideoMamba
from pipeline.config import RunConfig
from pipeline.training.assemble import build_optimizer
from pipeline.training.engine import clip_factor
from pipeline.training.precision import AUTOCAST
from pipeline.training.startup import do_without_compiler, step_without_compiler


class StepEngine(Protocol):
    """What the study's loop needs of an engine."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor: ...
    def train(self, mode: bool = True) -> None: ...
    def backward(self, loss: Tensor) -> None: ...
    def squared_grad_norm(self) -> Tensor: ...
    def step(self, lr: float, grad_norm: float) -> None: ...


def plain_engine(config: RunConfig, model: VideoMamba) -> PlainEngine:
    """The engine of a run on one CPU core, with the optimizer of `vmp train`."""
    do_without_compiler()
    optimizer = build_optimizer(config, model, torch.device("cpu"))
    step_without_compiler(optimizer)
    return PlainEngine(
        model,
        optimizer,
        precision=config.engine.precision,
        clip_grad=config.optim.clip_grad,
    )


class PlainEngine:
    """A model and its AdamW in one process, without loss scale."""

    def __init__(
        self,
        model: VideoMamba,
        optimizer: torch.optim.Optimizer,
        *,
        precision: str,
        clip_grad: float | None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.precision = precision
        self.clip_grad = clip_grad

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        dtype = AUTOCAST.get(self.precision)
        with nullcontext() if dtype is None else torch.autocast("cpu", dtype):
            output: Tensor = self.model(*args, **kwargs)
        return output

    def train(self, mode: bool = True) -> None:
        self.model.train(mode)

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)

    def squared_grad_norm(self) -> Tensor:
        """0-dim float64, as the engine of training computes it."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.stack(torch._foreach_norm(gradients)).double().square().sum()

    def step(self, lr: float, grad_norm: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        factor = clip_factor(grad_norm, self.clip_grad)
        if factor != 1:
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, factor)
        self.optimizer.step()
        self.optimizer.zero_grad()
