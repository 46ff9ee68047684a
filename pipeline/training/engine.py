"""DeepSpeed behind a small surface; the only module that imports it.

What the trainer needs: forward, backward, finite check, step, and the ZeRO-sharded state (`state`).
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
from torch import nn

from pipeline.training.config import EngineConfig
from pipeline.training.distributed import World, limit_collectives
from pipeline.training.startup import absent
from pipeline.training.zero_state import ZeroState

# The phantom-step and precision traps that shaped this list are measured in docs/training.md.
Precision = Literal["fp32", "bf16"]
_LARGEST_BUCKET = 50_000_000


def resolve_precision(precision: str, device: torch.device) -> Precision:
    if precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return "bf16" if precision == "bf16" else "fp32"


class Engine:
    """A model, its AdamW and its gradients, partitioned over the ranks by ZeRO.

    Construction is collective: call on every rank.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: EngineConfig,
        *,
        world: World,
        micro_batch: int,
        accumulation: int,
        clip_grad: float | None,
        ema_decay: float | None = None,
    ) -> None:
        deepspeed = _import_deepspeed(world.device)
        self.world = world
        self.stage = config.zero_stage
        self.clip_grad = clip_grad
        self.precision = resolve_precision(config.precision, world.device)
        if self.stage == 3 and hasattr(model, "zero3_leaf_modules"):
            deepspeed.utils.set_z3_leaf_modules(model, list(cast(Any, model).zero3_leaf_modules))
        with absent("triton"):  # for layers of experts, which we have not
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=model,
                optimizer=optimizer,
                dist_init_required=False,
                config=self._deepspeed_config(
                    micro_batch, accumulation, sum(p.numel() for p in model.parameters())
                ),
            )
        self.module: nn.Module = self._engine.module
        self.state = ZeroState(
            self.module, self._optimizer, stage=self.stage, world=world, ema_decay=ema_decay
        )
        # DeepSpeed makes groups of its own, with torch's defaults.
        limit_collectives(config.init_timeout_s)

    def _deepspeed_config(
        self, micro_batch: int, accumulation: int, num_parameters: int
    ) -> dict[str, Any]:
        # Stages 1 and 2 refuse an odd bucket, as of a small model with 51 or 101 classes.
        bucket = min(num_parameters + num_parameters % 2, _LARGEST_BUCKET)
        return {
            "train_batch_size": micro_batch * accumulation * self.world.size,
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": accumulation,
            # Stage 0 is clipped in `step`, where the norm can be reported as well.
            "gradient_clipping": 0.0 if self.stage == 0 else (self.clip_grad or 0.0),
            "zero_optimization": {
                "stage": self.stage,
                "overlap_comm": self.world.device.type == "cuda",
                # The default of 5e8 elements is allocated anew in every step: 2 GB for any model.
                "reduce_bucket_size": bucket,
                "allgather_bucket_size": bucket,
                # Small models: partition every parameter, so that stage 3 is the same at any size.
                "stage3_param_persistence_threshold": 0,
            },
            "torch_autocast": {
                "enabled": self.precision == "bf16",
                "dtype": "bfloat16",
                # No module communicates in bf16: gradients are summed in fp32 at every world size.
                "lower_precision_safe_modules": [],
            },
            "steps_per_print": 2**31,
        }

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward pass; under ZeRO-3 collective."""
        output: torch.Tensor = self._engine(*args, **kwargs)
        return output

    def train(self, mode: bool = True) -> None:
        self._engine.train(mode)

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradients of one micro-batch.

        `loss` is the micro-batch mean; DeepSpeed divides by the accumulation steps itself.
        Collective on the last micro-batch of a step.
        """
        self._engine.backward(loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # only advances DeepSpeed's micro-step counter

    def gradients_are_finite(self) -> torch.Tensor:
        """0-dim bool on the device: are the reduced gradients that this rank holds finite?"""
        finite = torch.ones((), dtype=torch.bool, device=self.world.device)
        for gradient in self._local_gradients():
            finite &= torch.isfinite(gradient).all()
        return finite

    def _local_gradients(self) -> Iterator[torch.Tensor]:
        if self.stage == 0:
            for parameter in self.module.parameters():
                if parameter.grad is not None:
                    yield parameter.grad
            return
        for gradients in self._optimizer.averaged_gradients.values():
            yield from (g for g in gradients or () if g is not None)

    def step(self, lr: float) -> torch.Tensor | float:
        """Apply the accumulated gradients with learning rate `lr`; returns the gradient norm.

        Collective.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        norm: torch.Tensor | float | None = None
        if self.stage == 0:
            norm = nn.utils.clip_grad_norm_(
                self.module.parameters(), self.clip_grad or float("inf"), error_if_nonfinite=False
            )
        self._engine.step()
        self.state.update_average()
        if norm is None:
            norm = self._engine.get_global_grad_norm()
        return float("nan") if norm is None else norm

    def discard_gradients(self) -> None:
        """Forget the accumulated gradients; parameters, moments and Adam's step stay."""
        self._optimizer.zero_grad(set_to_none=True)
        self._engine.zero_grad()
        if self.stage > 0:
            for group in self._optimizer.averaged_gradients:
                self._optimizer.averaged_gradients[group] = None
        if self.stage in (1, 2):
            for group in self._optimizer.all_grad_tensors:
                self._optimizer.all_grad_tensors[group] = None
        self._engine.micro_steps += 1


def _import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed without its hidden C++ builds, its chatter and its MPI discovery."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*is deprecated.*", category=FutureWarning)
    with absent("mlflow"):  # its autotuner would import it, on every rank
        import deepspeed
    import deepspeed.ops
    from deepspeed.runtime import compiler
    from deepspeed.utils import logger

    # The Muon optimizer is asked about in every step and compiles its kernels when it is imported.
    # The decorator is DeepSpeed's own, for a torch without a compiler.
    compile_kernels, compiler.compile = compiler.compile, lambda: compiler.dummy_decorator
    import deepspeed.runtime.zero.muon.original_muon

    compiler.compile = compile_kernels

    logger.setLevel(logging.WARNING)
    # Only its inference all-reduce uses this op, yet CPU start-up would compile it for a minute,
    # and hang for ever on a lock file left by a killed build.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="gloo" if device.type == "cpu" else "nccl",
        auto_mpi_discovery=False,
        verbose=False,
    )
    return deepspeed
