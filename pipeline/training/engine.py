"""DeepSpeed behind a small surface; the only module that imports it.

What the trainer needs: forward, backward, gradient norm, step, and the ZeRO-sharded state.
DeepSpeed itself neither clips nor casts nor checks: its norm is a float64 copy of every gradient
and waits for the device, where ours is one fused launch that the verdict of the step reads.
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
# A gradient norm of zero must not divide by zero; the value is that of torch and DeepSpeed.
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
            # Never DeepSpeed's own mixed precision, see docs/training.md.
            autocast = torch.autocast(world.device.type, AUTOCAST[self.precision])
            model.forward = autocast(model.forward)
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
            "gradient_clipping": 0.0,  # `step` does it
            "zero_optimization": {
                "stage": self.stage,
                # Stage 3 knows no way without.
                "compute_grad_norm": self.stage == 3 or self.stage == 0,
                "overlap_comm": self.world.device.type == "cuda",
                # The default of 5e8 elements is allocated anew in every step: 2 GB for any model.
                "reduce_bucket_size": bucket,
                "allgather_bucket_size": bucket,
                # Small models: partition every parameter, so that stage 3 is the same at any size.
                "stage3_param_persistence_threshold": 0,
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
        self._engine.backward(loss * self.loss_scale.value if self.loss_scale.is_on else loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # only advances DeepSpeed's micro-step counter

    def squared_grad_norm(self) -> torch.Tensor:
        """0-dim float64 on the device: this rank's share of the squared norm, scaled as the loss.

        The shares of all ranks add up to the whole. Not collective; waits for nothing.
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

        `grad_norm`: of all ranks, from `squared_grad_norm`; decides about clipping.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        factor = clip_factor(self.unscaled(grad_norm), self.clip_grad) / self.loss_scale.value
        if factor != 1:
            torch._foreach_mul_(list(self._local_gradients()), factor)
        self._engine.step()
        self.state.update_average()

    def unscaled(self, grad_norm: float) -> float:
        """A norm of gradients as it is without the loss scale."""
        return grad_norm / self.loss_scale.value

    def learning_rates(self, lr: float) -> dict[str, float]:
        """`lr`, and what groups with another scale get of it, by name."""
        scales = {group["lr_scale"] for group in self._optimizer.param_groups} - {1.0}
        return {"lr": lr} | {f"lr_x{scale:.3g}": lr * scale for scale in sorted(scales)}

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


def clip_factor(grad_norm: float, largest: float | None) -> float:
    """What gradients of norm `grad_norm` are multiplied by, so that it is `largest` at most."""
    return 1.0 if largest is None else min(1.0, largest / (grad_norm + _CLIP_EPS))


def compile_blocks(model: nn.Module) -> None:
    """torch.compile each block of a backbone in place: its parameters keep their names.

    The scan stays a call of its own; what surrounds it is fused.
    """
    for block in cast(Any, model).layers:
        block.compile(dynamic=False)


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
