"""How a run trains: its sections of the configuration. Imports without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.operational import OPERATIONAL
from pipeline.errors import ConfigError

Beta = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class BatchConfig(_Section):
    """Videos per optimizer step, and how they are cut to the devices at hand."""

    global_size: int = Field(default=256, gt=0)
    """Videos per optimizer step over all ranks; never changes with the number of GPUs."""
    max_micro: Annotated[int, OPERATIONAL] = Field(default=16, gt=0)
    """Videos that one device takes at once; accumulation fills up to `global_size`."""

    def split(self, world_size: int, multiple_of: int = 1) -> tuple[int, int]:
        """(micro-batch per rank, accumulation steps) for `world_size` ranks.

        The micro-batch is the largest up to `max_micro` that fits and is a multiple as asked
        (mixing pairs samples: 2). Raises ConfigError when the global batch cannot be dealt out.
        """
        if self.global_size % world_size:
            raise ConfigError(
                f"batch.global_size={self.global_size} cannot be dealt to {world_size} ranks: "
                "take a multiple, or another number of ranks"
            )
        share = self.global_size // world_size
        fitting = [m for m in range(1, min(share, self.max_micro) + 1) if share % m == 0]
        fitting = [m for m in fitting if m % multiple_of == 0]
        if not fitting:
            raise ConfigError(
                f"batch.global_size={self.global_size} over {world_size} ranks has no micro-batch "
                f"of 1 to {self.max_micro} that is a multiple of {multiple_of}: change "
                "batch.global_size, batch.max_micro or the number of ranks"
            )
        return fitting[-1], share // fitting[-1]


class LaunchConfig(_Section):
    """Processes on this machine, where no launcher has made them already."""

    ranks_per_node: int | None = Field(default=None, gt=0)
    """null = one per GPU, or one on a machine without."""
    threads_per_rank: int | None = Field(default=None, gt=0)
    """CPU threads of each rank; null = the cores divided by the ranks."""


class OptimConfig(_Section):
    """AdamW as every published VideoMamba recipe uses it.

    `profile` decides what the published code left to accident: `parity` decays A_log and the
    convolutions and multiplies the embeddings' learning rate by `layer_decay ** (depth + 1)`, as
    the authors' script in effect does; `corrected` decays matrices only and leaves the rate alone.
    """

    lr: float = Field(default=8e-4, gt=0)
    """Peak learning rate at the recipe's global batch; never rescaled behind your back."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Decoupled weight decay of the matrices."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    clip_grad: float | None = Field(default=None, gt=0)
    """Largest global gradient norm; null = no clipping."""
    profile: Literal["corrected", "parity"] = "corrected"
    """What is decayed, and the rate of the embeddings; see the section."""
    layer_decay: float = Field(default=0.75, gt=0, le=1)
    """Base of the factor of the embeddings' learning rate (parity only)."""


class ScheduleConfig(_Section):
    """Cosine decay with linear warm-up, counted in epochs of the training split."""

    epochs: float = Field(default=50, gt=0)
    """Passes over the training split."""
    warmup_epochs: float = Field(default=5, ge=0)
    """Epochs of linear warm-up, part of `epochs`."""
    warmup_lr: float = Field(default=1e-6, ge=0)
    """Learning rate of the first step."""
    min_lr: float = Field(default=1e-6, ge=0)
    """Learning rate at the end of the cosine."""
    max_steps: int | None = Field(default=None, gt=0)
    """Stop after this many optimizer steps; the cosine then ends there too."""

    @model_validator(mode="after")
    def _warmup_is_shorter_than_training(self) -> ScheduleConfig:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} must be smaller than epochs={self.epochs}"
            )
        return self


class EngineConfig(_Section):
    """How DeepSpeed holds the model."""

    zero_stage: Annotated[Literal[0, 1, 2, 3], OPERATIONAL] = 1
    """What ranks share out: 0 nothing, 1 optimizer state, 2 gradients too, 3 parameters too."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """bf16 and fp16 = autocast around fp32 parameters (never DeepSpeed's own modes, which would
    round A_log, D and the dt bias); fp16 with a dynamic loss scale. auto = bf16 on CUDA, fp32 on
    CPU."""
    tf32: Annotated[bool, OPERATIONAL] = False
    """Let CUDA round the factors of fp32 matrix products to 10 bits of mantissa."""
    compile: Annotated[bool, OPERATIONAL] = False
    """torch.compile what surrounds the scan in each block; the first step then takes minutes.
    Equal to eager up to rounding; not at ZeRO stage 3."""
    init_timeout_s: Annotated[float, OPERATIONAL] = Field(default=1800, gt=0)
    """Collective time-out while ranks start, compile and read their checkpoint."""
    step_timeout_s: Annotated[float, OPERATIONAL] = Field(default=600, gt=0)
    """Collective time-out from the end of the first step on: how long ranks may wait for the
    slowest of them, evaluation and saving included, before they take it for lost."""

    @model_validator(mode="after")
    def _stage_3_is_eager(self) -> EngineConfig:
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile=true cannot trace what ZeRO stage 3 gathers: take a lower zero_stage"
            )
        return self


class EmaConfig(_Section):
    """Moving average of the weights, kept beside them."""

    decay: float | None = Field(default=None, gt=0, lt=1)
    """Share of the average that stays in each step, such as 0.9999; null = no average is kept.
    Costs 4 bytes per parameter, divided by the ranks at ZeRO >= 1."""


class GuardConfig(_Section):
    """What a loss or gradient that is not finite does to the run."""

    max_skipped_in_a_row: int = Field(default=0, ge=0)
    """Steps with NaN or infinity that are skipped before the run stops with an error."""


class LossConfig(_Section):
    """Cross-entropy with label smoothing."""

    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of the target that is spread evenly over all classes."""
