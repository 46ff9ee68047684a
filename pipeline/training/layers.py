"""Statistics per layer of single steps: gradients, weights, updates, and magnitudes in mixers.

They stay on the device until the row is logged, so that no step waits for them, and they are the
same at every ZeRO stage and on any number of ranks, but for the order of sums.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from model.mixer import Mixer
from pipeline.training.distributed import World, sum_over_ranks
from pipeline.training.engine import Engine

_BLOCK = re.compile(r"(?:^|\.)layers\.(\d+)\.")
MAGNITUDES = ("delta_rms", "B_rms", "C_rms", "state_rms")
"""Names of what `Mixer.magnitudes` returns."""


def layer_of(name: str) -> str:
    """Return the layer of a parameter or module: its block's number, else its first name."""
    block = _BLOCK.search(name)
    return f"{int(block[1]):02d}" if block else name.partition(".")[0]


class LayerStatistics:
    """Statistics of every `every_steps`-th step, by layer; None = of no step."""

    def __init__(self, engine: Engine, world: World, every_steps: int | None) -> None:
        self._engine, self._world, self._every = engine, world, every_steps
        self._names = list(dict.fromkeys(map(layer_of, engine.state.shapes)))
        self._mixers = {
            layer_of(f"{name}."): module
            for name, module in engine.module.named_modules()
            if isinstance(module, Mixer) and any(p.requires_grad for p in module.parameters())
        }
        self._due = False
        self._squares: Tensor | None = None
        self._loss_scale = 1.0
        self._magnitudes: dict[str, Tensor] = {}
        self._hooks: list[Any] = []

    def begin(self, step: int) -> None:
        """Begin optimizer step number `step`, counted from 1; does nothing unless it is due."""
        self._remove_hooks()
        self._due = self._every is not None and step % self._every == 0
        self._squares, self._magnitudes = None, {}
        if self._due and self._world.is_main:  # it has the first clip of the global batch
            for layer, mixer in self._mixers.items():
                self._hooks.append(mixer.register_forward_pre_hook(partial(self._look, layer)))

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _look(self, layer: str, mixer: Mixer, inputs: tuple[Tensor, ...]) -> None:
        # Other micro-batches and the recomputation of a checkpointed block come here too.
        if layer not in self._magnitudes:
            self._magnitudes[layer] = mixer.magnitudes(inputs[0][:1].detach())

    @contextmanager
    def around_update(self) -> Iterator[None]:
        """Measure the update that is applied in the block, if this step is due."""
        if not self._due:
            yield
            return
        self._loss_scale = self._engine.loss_scale.value
        gradients = self._sums(self._engine.state.gradients())
        before = [weight.clone() for _, weight in self._engine.state.weights()]
        yield
        shares = dict(self._engine.state.weights())
        updates = torch._foreach_sub(list(shares.values()), before)
        self._squares = torch.stack(
            [
                gradients,
                self._sums(iter(shares.items())),
                self._sums(zip(shares, updates, strict=True)),
            ]
        )

    def _sums(self, shares: Iterator[tuple[str, Tensor]]) -> Tensor:
        """Return this rank's part of the squared norms, (layers,) float64 on the device."""
        named = list(shares)
        sums = torch.zeros(len(self._names), dtype=torch.float64, device=self._world.device)
        if not named:
            return sums
        norms = torch.stack(torch._foreach_norm([tensor for _, tensor in named])).double()
        places = torch.tensor([self._names.index(layer_of(name)) for name, _ in named])
        sums.index_add_(0, places.to(sums.device, non_blocking=True), norms.square())
        return sums / self._world.size if self._engine.stage == 0 else sums

    def read(self) -> dict[str, float]:
        """Return metric name -> value of the step just done; empty unless it was due and applied.

        Collective on due steps. The names are `grad_norm/03` for block 3 and so on: `grad_norm`
        before clipping, `weight_norm` after the step, `update_ratio` (norm of the update divided
        by that of the weights), and, of the first clip of the global batch, `delta_rms`, `B_rms`,
        `C_rms` and `state_rms` (`Mixer.magnitudes`).
        """
        self._remove_hooks()
        if self._squares is None:
            return {}
        norms = sum_over_ranks(self._squares.cpu()).sqrt().tolist()
        values = {}
        for layer, gradient, weight, update in zip(self._names, *norms, strict=True):
            values[f"grad_norm/{layer}"] = gradient / self._loss_scale
            values[f"weight_norm/{layer}"] = weight
            values[f"update_ratio/{layer}"] = update / weight if weight else 0.0
        for layer, magnitudes in self._magnitudes.items():
            for name, value in zip(MAGNITUDES, magnitudes.tolist(), strict=True):
                values[f"{name}/{layer}"] = value
        self._squares = None
        return values
