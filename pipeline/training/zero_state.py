"""The state that ZeRO has dealt to the ranks, as named fragments.

Any other number of ranks and any other stage can take the fragments back, which DeepSpeed's own
checkpoints cannot. What is read here of DeepSpeed's optimizers are attributes, not an interface:
tests/dist/test_engine.py holds them to it.
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
"""A fourth key, where an average of the weights is kept."""


@dataclass(frozen=True)
class Fragment:
    """A flat slice of one parameter's fp32 state, as one rank owns it."""

    name: str
    start: int
    tensors: Mapping[str, torch.Tensor]
    """`STATE_KEYS` (and `EMA_KEY`) -> fp32 (numel,)."""


class ZeroState:
    """Parameters, Adam's moments and the average of the weights, wherever ZeRO keeps them."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: Any,
        *,
        stage: int,
        world: World,
        ema_decay: float | None,
    ) -> None:
        """`optimizer`: DeepSpeed's, or AdamW itself at stage 0."""
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
        """Optimizer steps applied so far, as AdamW's bias correction counts them."""
        for state in self._adam().state.values():
            if "step" in state:
                return int(state["step"])
        return 0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every trained parameter, whole even where ZeRO-3 has cut it up."""
        return {n: tuple(getattr(p, "ds_shape", p.shape)) for n, p in self._trainable()}

    def fragments(self) -> Iterator[Fragment]:
        """This rank's share of the state; over all ranks each element exactly once.

        Not collective; the tensors are views: copy before the next step. Stage 0 holds everything
        on every rank, so rank 0 gives all of it.
        """
        if self._stage == 0 and not self._world.is_main:
            return
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

    def load(self, full: Mapping[str, Mapping[str, torch.Tensor]], steps: int) -> None:
        """Take over the state that `fragments` gave on any number of ranks at any stage.

        Args:
            full: parameter name -> `STATE_KEYS` -> the whole fp32 tensor (any shape, on the CPU).
                Without `EMA_KEY`, an average begins anew at the loaded weights.
            steps: Adam's step count.
        Collective.
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
        """Call it after each step that was applied."""
        if self._ema is not None:
            self._ema.update()

    @contextmanager
    def averaged_weights(self, wanted: bool = True) -> Iterator[None]:
        """Within, the model computes with the average of its weights, if one is kept. Collective.

        After an exception the average stays in place: the ranks could not agree to restore.
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
        """Make the model compute with the fp32 shares that the ranks hold. Collective."""
        if self._stage in (1, 2):
            self._optimizer.update_lp_params()
        elif self._stage == 3:
            self._optimizer.empty_partition_cache()  # whole copies of what was there before
            for _, parameter in self._trainable():
                parameter.ds_tensor.data.copy_(self._z3_partition(parameter, "param"))

    # --- where ZeRO keeps things -----------------------------------------------------------------

    def _share(self, parameter: Any, key: str = "param") -> tuple[int, torch.Tensor]:
        """(offset in the flattened parameter, flat view of the slice that this rank holds)."""
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
        """A view of the flat fp32 partition, padding included, that ZeRO-3 keeps on this rank."""
        view: torch.Tensor
        view, _ = self._optimizer._get_fp32_opt_state_partition(
            parameter,
            release_swap_buffers=False,
            optim_state_key=None if key == "param" else key,
        )
        return view.detach()

    def _create_adam_state(self, steps: int) -> None:
        """AdamW makes its state in the first step; a resumed run needs it before."""
        adam = self._adam()
        for group in adam.param_groups:
            parameters = group["params"]
            for parameter in parameters:
                adam.state[parameter] = {
                    # One tensor each: sharing it would advance it once per parameter.
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
        # DeepSpeed links moments to parameters once, after stepping its first parameter group,
        # when the other groups have none yet.
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
    """Adam's own counter: beside the parameter where the update is fused, else on the CPU."""
    device = parameter.device if group.get("fused") else "cpu"
    return torch.tensor(float(steps), device=device)
