"""The state that ZeRO partitions over the ranks, as named fragments.

The fragments can be loaded on any number of ranks and at any stage, which DeepSpeed's own
checkpoints do not allow. This module reads attributes of DeepSpeed's optimizers that are not a
public interface; tests/dist/test_engine.py fails if they change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.training.distributed import World, barrier
from pipeline.training.ema import Ema

STATE_KEYS = ("param", "exp_avg", "exp_avg_sq")
EMA_KEY = "ema"
"""Fourth key, present when a moving average of the weights is kept."""


@dataclass(frozen=True)
class Fragment:
    """A flat slice of one parameter's fp32 state that one rank owns.

    `start` is the offset of the slice in the flattened parameter, in elements.
    """

    name: str
    start: int
    tensors: Mapping[str, torch.Tensor]
    """`STATE_KEYS` (and `EMA_KEY`) -> fp32 (numel,)."""


class ZeroState:
    """Access to parameters, Adam's moments and the averaged weights at every ZeRO stage."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: Any,
        *,
        stage: int,
        world: World,
        ema_decay: float | None,
    ) -> None:
        """Take DeepSpeed's `optimizer`, or AdamW itself at stage 0."""
        self._module = module
        self._optimizer = optimizer
        self._stage = stage
        self._world = world
        self._ema: Ema | None = None
        if ema_decay is not None:
            shares = ((name, self._share(parameter)) for name, parameter in self._trainable())
            self._ema = Ema(ema_decay, {name: view for name, (_, view) in shares})

    @property
    def adam_steps(self) -> int:
        """Number of optimizer steps applied so far, as AdamW's bias correction counts them."""
        for state in self._adam().state.values():
            if "step" in state:
                return int(state["step"])
        return 0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> full shape of every trained parameter, also where ZeRO-3 partitions it."""
        return {n: tuple(getattr(p, "ds_shape", p.shape)) for n, p in self._trainable()}

    def fragments(self) -> Iterator[Fragment]:
        """Yield this rank's share of the state; the ranks together yield each element once.

        Not collective. The tensors are views, so copy them before the next step. At stage 0 every
        rank holds the whole state, and rank 0 alone yields it.
        """
        if self._stage == 0 and not self._world.is_main:
            return
        if not self._adam().state:  # before the first step
            self._create_adam_state(0)
        if self._stage in (1, 2):
            self._link_moments()
        for name, parameter in self._trainable():
            start, weights = self._share(parameter)
            if not weights.numel():
                continue
            tensors = {key: self._share(parameter, key)[1] for key in STATE_KEYS}
            if self._ema is not None:
                tensors[EMA_KEY] = self._ema.averages[name]
            yield Fragment(name, start, tensors)

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, flat fp32 view) of this rank's share of the weights. Not collective.

        The shares of all ranks make each parameter up once, except that at stage 0 every rank has
        the whole.
        """
        for name, parameter in self._trainable():
            yield name, self._share(parameter)[1]

    def gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, tensor) of this rank's share of the reduced gradients. Not collective.

        The shares are those of `weights`, padded with zeros at stage 3. They exist between the last
        `backward` and the step, and include the loss scale.
        """
        if self._stage == 0:
            yield from ((n, p.grad) for n, p in self._trainable() if p.grad is not None)
            return
        names = {id(parameter): name for name, parameter in self._trainable()}
        zero = self._optimizer
        parameters = zero.fp16_groups if self._stage == 3 else zero.params_in_partition
        for group, gradients in zero.averaged_gradients.items():
            held = [g for g in gradients or () if not getattr(g, "_zero_padding", False)]
            # A rank without any parameter of a group holds one tensor of zeros for it.
            for parameter, gradient in zip(parameters[group], held, strict=False):
                yield names[id(parameter)], gradient

    def load(self, full: Mapping[str, Mapping[str, torch.Tensor]], steps: int) -> None:
        """Load a state that was saved from any number of ranks at any stage. Collective.

        Args:
            full: parameter name -> `STATE_KEYS` -> the whole fp32 tensor (any shape, on the CPU).
                Without `EMA_KEY`, the moving average restarts from the loaded weights.
            steps: Adam's step count.
        """
        self._create_adam_state(steps)
        for name, parameter in self._trainable():
            tensors = {k: v.to(self._world.device).flatten() for k, v in full[name].items()}
            for key in STATE_KEYS:
                start, mine = self._share(parameter, key)
                mine.copy_(tensors[key][start : start + mine.numel()])
            if self._ema is not None:
                average = tensors.get(EMA_KEY, tensors["param"])
                mine = self._ema.averages[name]
                mine.copy_(average[start : start + mine.numel()])
        self._publish_weights()
        barrier()

    # --- average of the weights ------------------------------------------------------------------

    def update_average(self) -> None:
        """Update the moving average, if one is kept. Call this after each applied step."""
        if self._ema is not None:
            self._ema.update()

    @contextmanager
    def averaged_weights(self, wanted: bool = True) -> Iterator[None]:
        """Let the model use its averaged weights, if kept, inside the block. Collective.

        After an exception the averages stay in place, because restoring the weights is collective
        and the other ranks may not take part.
        """
        if self._ema is None or not wanted:
            yield
            return
        self._ema.swap()
        self._publish_weights()
        yield
        self._ema.swap()
        self._publish_weights()

    def _publish_weights(self) -> None:
        """Copy the fp32 shares of the ranks into the weights that the model uses. Collective."""
        if self._stage in (1, 2):
            self._optimizer.update_lp_params()
        elif self._stage == 3:
            self._optimizer.empty_partition_cache()  # the cache holds copies of the old weights
            for _, parameter in self._trainable():
                parameter.ds_tensor.data.copy_(self._z3_partition(parameter, "param"))

    # --- where ZeRO keeps things -----------------------------------------------------------------

    def _share(self, parameter: Any, key: str = "param") -> tuple[int, torch.Tensor]:
        """Return (offset in the flattened parameter, flat view of this rank's slice)."""
        if self._stage == 3:
            partition = self._z3_partition(parameter, key)
            start = self._world.rank * partition.numel()
            used = min(partition.numel(), max(0, parameter.ds_numel - start))
            return start, partition[:used]
        if self._stage > 0:
            mapping = parameter._hp_mapping
            if mapping is None:
                return 0, parameter.detach().flatten()[:0]
            view = mapping.get_hp_fragment(None if key == "param" else key)
            return mapping.lp_fragment_address.start, view.detach()
        whole = parameter if key == "param" else self._adam().state[parameter][key]
        return 0, whole.detach().view(-1)

    def _z3_partition(self, parameter: Any, key: str) -> torch.Tensor:
        """Return a view of this rank's flat fp32 partition under ZeRO-3, padding included."""
        view: torch.Tensor
        view, _ = self._optimizer._get_fp32_opt_state_partition(
            parameter,
            release_swap_buffers=False,
            optim_state_key=None if key == "param" else key,
        )
        return view.detach()

    def _create_adam_state(self, steps: int) -> None:
        """Create AdamW's state, which a resumed run needs before the first step creates it."""
        adam = self._adam()
        for group in adam.param_groups:
            parameters = group["params"]
            for parameter in parameters:
                adam.state[parameter] = {
                    # Each parameter needs a counter of its own: AdamW would advance a shared one
                    # once per parameter.
                    "step": _step_count(group, parameter, steps),
                    "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                }
        if self._stage in (1, 2):
            self._link_moments()
        if self._stage == 3:
            flats = self._optimizer.fp32_partitioned_groups_flat
            for flat in flats:
                adam.state[flat] = {
                    "step": _step_count(adam.param_groups[0], flat, steps),
                    "exp_avg": torch.zeros_like(flat),
                    "exp_avg_sq": torch.zeros_like(flat),
                }

    def _link_moments(self) -> None:
        # DeepSpeed links moments to parameters only once, after the step of its first parameter
        # group, when the other groups have no moments yet. Clearing the flag links them again.
        self._optimizer._hp_optimizer_states_linked = False
        self._optimizer._lazy_init_hp_params_optimizer_state()

    def _adam(self) -> torch.optim.Optimizer:
        inner: torch.optim.Optimizer = (
            self._optimizer.optimizer if self._stage > 0 else self._optimizer
        )
        return inner

    def _trainable(self) -> Iterator[tuple[str, Any]]:
        return ((n, p) for n, p in self._module.named_parameters() if p.requires_grad)


def _step_count(group: Mapping[str, Any], parameter: torch.Tensor, steps: int) -> torch.Tensor:
    """Return Adam's step counter, on the parameter's device if fused and else on the CPU."""
    device = parameter.device if group.get("fused") else "cpu"
    return torch.tensor(float(steps), device=device)
