"""Configuration sections for training. Importing this module does not import torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.operational import OPERATIONAL
from pipeline.errors import ConfigError

Beta = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class BatchConfig(_Section):
    """Number of videos per optimizer step, and how they are split over the devices."""

    global_size: int = Field(default=256, gt=0)
    """Videos per optimizer step over all ranks; never changes with the number of GPUs."""
    max_micro: Annotated[int, OPERATIONAL] = Field(default=16, gt=0)
    """Largest number of videos that one device processes at once; gradient accumulation makes up
    the rest of `global_size`."""

    def split(self, world_size: int, multiple_of: int = 1) -> tuple[int, int]:
        """Return (micro-batch per rank, accumulation steps) for `world_size` ranks.

        The micro-batch is the largest divisor of a rank's share that is at most `max_micro` and
        a multiple of `multiple_of` (2 with mixing, which pairs samples).
        Raises ConfigError when the global batch cannot be split this way.
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
    """Processes to start on this machine when no launcher has started them already."""

    ranks_per_node: int | None = Field(default=None, gt=0)
    """Ranks on each machine; null = one per GPU, or one on a machine without GPUs."""
    threads_per_rank: int | None = Field(default=None, gt=0)
    """CPU threads per rank; null = the number of cores divided by the number of ranks."""


def _layer_decay_of_profile(fields: dict[str, object]) -> float:
    """Return the default of `optim.layer_decay`, given the fields above it."""
    return 0.75 if fields.get("profile") == "parity" else 1.0


class OptimConfig(_Section):
    """AdamW, which every published VideoMamba recipe uses.

    `profile` settles two side effects of the published code. `parity` keeps them: it decays A_log
    and the convolutions, and its layer-wise decay of the learning rate misses all blocks, so that
    only the embeddings learn more slowly. `corrected` decays only matrices, and its layer-wise
    decay reaches every block.
    """

    lr: float = Field(default=8e-4, gt=0)
    """Peak learning rate; it is never rescaled, whatever the global batch size."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Decoupled weight decay of the decayed parameters; see `profile`."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of Adam's first and second moments."""
    eps: float = Field(default=1e-8, gt=0)
    """Term added to the square root of the second moment to avoid division by zero."""
    clip_grad: float | None = Field(default=None, gt=0)
    """Maximum global gradient norm; null = no clipping."""
    profile: Literal["corrected", "parity"] = "corrected"
    """Which parameters are decayed, and whose learning rate `layer_decay` scales."""
    layer_decay: float = Field(default_factory=_layer_decay_of_profile, gt=0, le=1)
    """Factor on the learning rate per layer below the head; 1 = one learning rate. The embeddings
    get `layer_decay ** (depth + 1)`, block i gets `layer_decay ** (depth - i)`, and the final norm
    and the head get 1; under `parity`, blocks and the temporal embedding get 1 too. By default 1,
    and 0.75 under `parity`, as in the published scripts."""


class ScheduleConfig(_Section):
    """Cosine decay with linear warm-up, counted in epochs of the training split."""

    epochs: float = Field(default=50, gt=0)
    """Passes over the training split."""
    warmup_epochs: float = Field(default=5, ge=0)
    """Epochs of linear warm-up; they count toward `epochs`."""
    warmup_lr: float = Field(default=1e-6, ge=0)
    """Learning rate at the start of the warm-up."""
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
    """How DeepSpeed partitions, computes and synchronizes the model."""

    zero_stage: Annotated[Literal[0, 1, 2, 3], OPERATIONAL] = 1
    """What the ranks partition: 0 nothing, 1 the optimizer state, 2 also the gradients, 3 also the
    parameters."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the computation; auto = bf16 on CUDA, fp32 on the CPU. bf16 and fp16 run
    under autocast with fp32 parameters, since DeepSpeed's own modes would round A_log, D and the
    dt bias; fp16 adds a dynamic loss scale."""
    tf32: Annotated[bool, OPERATIONAL] = False
    """Allow TF32 on CUDA, which rounds the factors of fp32 products to 10 bits of mantissa."""
    compile: Annotated[bool, OPERATIONAL] = False
    """Compile the parts of each block that surround the scan with torch.compile. Results equal
    eager execution up to rounding; the first step takes longer. Not available at ZeRO stage 3."""
    init_timeout_s: Annotated[float, OPERATIONAL] = Field(default=1800, gt=0)
    """Time-out of collectives while ranks start, compile and read their checkpoint."""
    step_timeout_s: Annotated[float, OPERATIONAL] = Field(default=600, gt=0)
    """Time-out of collectives after the first step: how long ranks wait for the slowest of them,
    evaluation and saving included, before they treat it as lost."""

    @model_validator(mode="after")
    def _stage_3_is_eager(self) -> EngineConfig:
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile=true cannot trace what ZeRO stage 3 gathers: take a lower zero_stage"
            )
        return self


class EmaConfig(_Section):
    """Exponential moving average of the weights, kept next to the weights themselves."""

    decay: float | None = Field(default=None, gt=0, lt=1)
    """Fraction of the average that each step keeps, such as 0.9999; null = no average. The average
    takes 4 bytes per parameter, divided by the number of ranks at ZeRO stage 1 and up."""


class GuardConfig(_Section):
    """What happens when a loss or a gradient is not finite."""

    max_skipped_in_a_row: int = Field(default=0, ge=0)
    """How many steps in a row with NaN or infinity are skipped before the run fails."""


class StabilityConfig(_Section):
    """Rollback of a run whose loss spikes to a checkpoint before the batches at fault.

    A spike is a loss above the median of the last `window_steps` losses by more than
    `threshold` robust standard deviations (1.4826 times the median absolute deviation) and by more
    than `min_rise`, in `spikes_in_a_row` steps in a row. Too many steps that are not finite, see
    `guard`, are treated alike.
    """

    rollback: bool = False
    """Roll back after a spike. It is off by default: no published recipe has it, and it leaves
    batches out and costs checkpoints of its own."""
    window_steps: int = Field(default=100, ge=10)
    """Recent losses to compare with; nothing is a spike before there are as many."""
    threshold: float = Field(default=8.0, gt=0)
    """Robust standard deviations above the median from which a loss is a spike."""
    min_rise: float = Field(default=0.5, ge=0)
    """Rise above the median, in nats, that a spike exceeds however even the other losses are."""
    spikes_in_a_row: int = Field(default=3, gt=0)
    """Steps in a row that make a rollback; fewer are taken for hard batches and trained on."""
    skip_before: int = Field(default=1, ge=0)
    """Trained steps before the first spike whose batches are left out too: a spike shows what the
    update before it has done."""
    checkpoint_every_steps: int = Field(default=500, gt=0)
    """Steps between the checkpoints to which a rollback returns. They are saved besides those of
    `checkpoint`, from step 0, and the newest two are kept."""
    max_rollbacks: Annotated[int, OPERATIONAL] = Field(default=5, ge=0)
    """Rollbacks of the whole run; the next spike ends the run."""

    @model_validator(mode="after")
    def _an_earlier_checkpoint_is_kept(self) -> StabilityConfig:
        if self.checkpoint_every_steps < self.spikes_in_a_row + self.skip_before:
            raise ValueError(
                f"checkpoint_every_steps={self.checkpoint_every_steps} must be at least "
                f"spikes_in_a_row + skip_before = {self.spikes_in_a_row + self.skip_before}: of "
                "the two checkpoints kept, one must be older than the batches at fault"
            )
        return self


class LossConfig(_Section):
    """Cross-entropy with label smoothing."""

    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of the target probability that is spread evenly over all classes."""
