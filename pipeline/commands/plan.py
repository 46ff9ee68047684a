"""`vmp plan`: the cost of a run, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from model.config import ModelConfig
from model.flops import activation_bytes, count_parameters, published_flops, training_flops
from pipeline.config import RunConfig
from pipeline.data.errors import DataError
from pipeline.data.shards import open_shards
from pipeline.errors import ConfigError
from pipeline.terminal import one_line
from pipeline.training.schedule import Schedule

# Bytes per parameter. The optimizer holds an fp32 master copy and two Adam moments.
_BYTES = {"parameters": 4, "gradients": 4, "optimizer": 12}


def memory_gib(
    model: ModelConfig, stage: int, world: int, micro_batch: int, *, ema: bool = False
) -> dict[str, float]:
    """Estimate GiB on one GPU by part: model states as ZeRO partitions them, and activations.

    The estimates are sums of tensor sizes. Allocator slack, communication buckets and the
    workspaces of kernels come on top.
    """
    count = count_parameters(model)
    shards = {
        "parameters": world if stage >= 3 else 1,
        "gradients": world if stage >= 2 else 1,
        "optimizer": world if stage >= 1 else 1,
    }
    # At stage 0 torch's AdamW updates the parameters directly, without a master copy.
    sizes = {**_BYTES, **({"optimizer": 8} if stage == 0 else {})}
    if ema:
        sizes["optimizer"] += 4
    parts = {name: count * sizes[name] / shards[name] / 2**30 for name in sizes}
    parts["activations"] = micro_batch * activation_bytes(model) / 2**30
    return parts


@dataclass(frozen=True)
class Plan:
    """The cost of a run."""

    parameters: int
    tokens_per_clip: int
    gflops_per_view: float
    """In the convention of the papers."""
    training_tflops_per_step: float
    clips_per_step: int
    """Views of all videos of a global batch."""
    global_batch: int
    micro_batch: int
    accumulation: int
    ranks: int
    memory_gib: dict[str, dict[str, float]]
    """GiB on one GPU by ZeRO stage, then by part."""
    samples: int | None
    """Training clips; None when there are no shards, as `samples_unknown` then says."""
    samples_unknown: str | None
    steps_per_epoch: int | None
    steps: int | None
    nodes: int
    hours: float | None
    """Time of all steps; None without a measured step time."""
    node_hours: float | None


def make_plan(
    config: RunConfig, world: int, num_nodes: int, *, samples: int | None, step_s: float | None
) -> Plan:
    """Compute the plan of `config` for `world` GPUs on `num_nodes` nodes.

    Args:
        samples: number of training clips; None counts those in the recipe's shards.
        step_s: measured time of a step, in seconds; None gives no node-hours.
    Raises ConfigError when the global batch cannot be split over the GPUs, or is more than the
    clips.
    """
    model = config.model
    micro, accumulation = config.batch_split(world)
    clips = config.batch.global_size * config.data.views
    unknown = None
    if samples is None:
        try:
            samples = len(open_shards(config.data.train, config.data.train_split))
        except DataError as error:
            unknown = one_line(str(error))
    steps_per_epoch = steps = hours = None
    if samples is not None:
        steps_per_epoch = _steps_per_epoch(samples, config.batch.global_size)
        steps = Schedule(config.schedule, config.optim.lr, steps_per_epoch).total_steps
        hours = steps * step_s / 3600 if step_s is not None else None
    return Plan(
        parameters=count_parameters(model),
        tokens_per_clip=model.num_tokens,
        gflops_per_view=published_flops(model) / 1e9,
        training_tflops_per_step=clips * training_flops(model) / 1e12,
        clips_per_step=clips,
        global_batch=config.batch.global_size,
        micro_batch=micro,
        accumulation=accumulation,
        ranks=world,
        memory_gib={
            str(stage): memory_gib(
                model, stage, world, micro * config.data.views, ema=config.ema.decay is not None
            )
            for stage in range(4)
        },
        samples=samples,
        samples_unknown=unknown,
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        nodes=num_nodes,
        hours=hours,
        node_hours=None if hours is None else hours * num_nodes,
    )


def _steps_per_epoch(samples: int, global_size: int) -> int:
    if samples < global_size:
        raise ConfigError(
            f"batch.global_size={global_size} is more than the {samples} clips of an "
            f"epoch: set it to {samples} or less"
        )
    return samples // global_size


def print_plan(plan: Plan) -> None:
    """Print a plan as a page for people."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(
        f"parameters           {plan.parameters:,}\n"
        f"tokens per clip      {plan.tokens_per_clip:,}\n"
        f"FLOPs per view       {plan.gflops_per_view:.4g} G (convention of the papers)\n"
        f"training FLOPs/step  {plan.training_tflops_per_step:.4g} T "
        f"({plan.clips_per_step} clips)\n"
        f"batch                {plan.global_batch} videos = {plan.micro_batch} x "
        f"{plan.accumulation} accumulation x {plan.ranks} ranks"
    )
    table = Table(title=f"GiB per GPU, {plan.ranks} GPUs, bf16 autocast over fp32 parameters")
    table.add_column("ZeRO stage")
    for name in (*_BYTES, "activations", "sum"):
        table.add_column(name, justify="right")
    for stage, parts in plan.memory_gib.items():
        values = [*parts.values(), sum(parts.values())]
        table.add_row(stage, *(f"{value:.2f}" for value in values))
    console.print(table)
    if plan.steps is None or plan.steps_per_epoch is None:
        console.print(f"steps                unknown, give --samples: {plan.samples_unknown}")
        return
    console.print(
        f"steps per epoch      {plan.steps_per_epoch:,} ({plan.samples:,} clips)\n"
        f"steps                {plan.steps:,} ({plan.steps / plan.steps_per_epoch:.4g} epochs)"
    )
    if plan.hours is None or plan.node_hours is None:
        console.print(
            "node-hours           give --step-s, as `vmp bench step` or a run measures it"
        )
        return
    console.print(
        f"node-hours           {plan.node_hours:,.1f} ({plan.hours:,.1f} h on {plan.nodes} nodes; "
        "evaluation and saving come on top)"
    )
