"""A small interface to DeepSpeed; no other module imports it.

The interface has what the trainer needs: forward, backward, gradient norm, step, and the state that
ZeRO partitions. Clipping, casting and the finite check are done here and not by DeepSpeed, whose
norm copies every gradient to float64 and waits for the device. The norm here is one fused launch,
and the verdict of the step reads its result.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

from pipeline.training.config import EngineConfig
from pipeline.training.distributed import World, limit_collectives
from pipeline.training.precision import AUTOCAST, LossScale, resolve_precision
from pipeline.training.startup import absent
from pipeline.training.zero_state import ZeroState

_LARGEST_BUCKET = 50_000_000
# This avoids a division by a zero norm; torch and DeepSpeed use the same value.
_CLIP_EPS = 1e-6


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
        self.loss_scale = LossScale(self.precision)
        if config.compile:
            compile_blocks(model)
        if self.precision in AUTOCAST:
            # docs/training.md explains why DeepSpeed's own mixed precision is not used.
            autocast = torch.autocast(world.device.type, AUTOCAST[self.precision])
            model.forward = autocast(model.forward)
        if self.stage == 3 and hasattr(model, "zero3_leaf_modules"):
            deepspeed.utils.set_z3_leaf_modules(model, list(cast(Any, model).zero3_leaf_modules))
        with absent("triton"):  # DeepSpeed needs it only for expert layers
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
        # DeepSpeed creates groups of its own, which have torch's default time-out.
        limit_collectives(config.init_timeout_s)

    def _deepspeed_config(
        self, micro_batch: int, accumulation: int, num_parameters: int
    ) -> dict[str, Any]:
        # Stages 1 and 2 reject an odd bucket size, which a small model with 51 or 101 classes has.
        bucket = min(num_parameters + num_parameters % 2, _LARGEST_BUCKET)
        return {
            "train_batch_size": micro_batch * accumulation * self.world.size,
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": 0.0,  # `Engine.step` clips
            "zero_optimization": {
                "stage": self.stage,
                # Stage 3 cannot step without its own norm.
                "compute_grad_norm": self.stage == 3 or self.stage == 0,
                "overlap_comm": self.world.device.type == "cuda",
                # DeepSpeed allocates a bucket in every step; the default of 5e8 elements would
                # take 2 GB for a model of any size.
                "reduce_bucket_size": bucket,
                "allgather_bucket_size": bucket,
                # Every parameter is partitioned, so that small models take the same path in
                # stage 3 as large ones.
                "stage3_param_persistence_threshold": 0,
            },
            "steps_per_print": 2**31,
        }

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward pass. Collective at ZeRO stage 3."""
        return self._engine(*args, **kwargs)

    def train(self, mode: bool = True) -> None:
        self._engine.train(mode)

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradients of one micro-batch.

        `loss` is 0-dim, the mean over the micro-batch; DeepSpeed divides it by the number of
        accumulation steps. Collective on the last micro-batch of a step.
        """
        self._engine.backward(loss * self.loss_scale.value if self.loss_scale.is_on else loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # only advances DeepSpeed's micro-step counter

    def squared_grad_norm(self) -> torch.Tensor:
        """Return this rank's share of the squared gradient norm: 0-dim float64 on the device.

        The shares of all ranks sum to the squared norm, which includes the loss scale. Not
        collective; the call does not wait for the device.
        """
        gradients = list(self._local_gradients())
        if not gradients:
            return torch.zeros((), dtype=torch.float64, device=self.world.device)
        squares = torch.stack(torch._foreach_norm(gradients)).double().square().sum()
        return squares / self.world.size if self.stage == 0 else squares

    def _local_gradients(self) -> Iterator[torch.Tensor]:
        if self.stage == 0:
            for parameter in self.module.parameters():
                if parameter.grad is not None:
                    yield parameter.grad
            return
        for gradients in self._optimizer.averaged_gradients.values():
            yield from (g for g in gradients or () if g is not None)

    def step(self, lr: float, grad_norm: float) -> None:
        """Apply the accumulated gradients with learning rate `lr`. Collective.

        `grad_norm` is the norm over all ranks, loss scale included; clipping uses it.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        factor = clip_factor(self.unscaled(grad_norm), self.clip_grad) / self.loss_scale.value
        if factor != 1:
            torch._foreach_mul_(list(self._local_gradients()), factor)
        self._engine.step()
        self.state.update_average()

    def unscaled(self, grad_norm: float) -> float:
        """Remove the loss scale from a gradient norm."""
        return grad_norm / self.loss_scale.value

    def learning_rates(self, lr: float) -> dict[str, float]:
        """Return metric name -> learning rate: `lr`, and that of the lowest `lr_scale` below 1."""
        lowest = min(group["lr_scale"] for group in self._optimizer.param_groups)
        return {"lr": lr} | ({f"lr_x{lowest:.3g}": lr * lowest} if lowest < 1 else {})

    def discard_gradients(self) -> None:
        """Drop the accumulated gradients; parameters, moments and Adam's step count stay."""
        self._optimizer.zero_grad(set_to_none=True)
        self._engine.zero_grad()
        if self.stage > 0:
            for group in self._optimizer.averaged_gradients:
                self._optimizer.averaged_gradients[group] = None
        if self.stage in (1, 2):
            for group in self._optimizer.all_grad_tensors:
                self._optimizer.all_grad_tensors[group] = None
        self._engine.micro_steps += 1


def clip_factor(grad_norm: float, largest: float | None) -> float:
    """Return the factor that brings a gradient norm of `grad_norm` down to at most `largest`."""
    return 1.0 if largest is None else min(1.0, largest / (grad_norm + _CLIP_EPS))


def compile_blocks(model: nn.Module) -> None:
    """Apply torch.compile to each block of a backbone in place; parameters keep their names.

    The scan remains a separate call; the operators around it are fused.
    """
    for block in cast(Any, model).layers:
        block.compile(dynamic=False)


def _import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed without its C++ builds, its log messages and its MPI discovery."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*is deprecated.*", category=FutureWarning)
    with absent("mlflow"):  # DeepSpeed's autotuner would import it on every rank
        import deepspeed
    import deepspeed.ops
    from deepspeed.runtime import compiler
    from deepspeed.utils import logger

    # DeepSpeed imports its Muon optimizer in every step, and that import compiles kernels. We
    # import it here with the decorator that DeepSpeed has for a torch without a compiler.
    compile_kernels, compiler.compile = compiler.compile, lambda: compiler.dummy_decorator
    import deepspeed.runtime.zero.muon.original_muon

    compiler.compile = compile_kernels

    logger.setLevel(logging.WARNING)
    # Only DeepSpeed's inference all-reduce uses this op. On the CPU, start-up would compile it for
    # a minute, and would hang forever on the lock file of a killed build.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="gloo" if device.type == "cpu" else "nccl",
        auto_mpi_discovery=False,
        verbose=False,
    )
    return deepspeed
