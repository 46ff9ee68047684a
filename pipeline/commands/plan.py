"""`vmp plan`: the cost of a run, from its configuration alone."""

from __future__ import annotations

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


def print_plan(config: RunConfig, world: int) -> None:
    """Print the plan of `config` for `world` GPUs.

    Raises ConfigError when the global batch cannot be split over them.
    """
    console = Console(highlight=False)
    model = config.model
    micro, accumulation = config.batch_split(world)
    clips = config.batch.global_size * config.data.views
    console.print(
        f"parameters           {count_parameters(model):,}\n"
        f"tokens per clip      {model.num_tokens:,}\n"
        f"FLOPs per view       {published_flops(model) / 1e9:.1f} G (convention of the papers)\n"
        f"training FLOPs/step  {clips * training_flops(model) / 1e12:.1f} T ({clips} clips)\n"
        f"batch                {config.batch.global_size} videos = {micro} x {accumulation} "
        f"accumulation x {world} ranks"
    )
    table = Table(title=f"GiB per GPU, {world} GPUs, bf16 autocast over fp32 parameters")
    table.add_column("ZeRO stage")
    names = (*_BYTES, "activations", "sum")
    for name in names:
        table.add_column(name, justify="right")
    for stage in range(4):
        parts = memory_gib(
            model, stage, world, micro * config.data.views, ema=config.ema.decay is not None
        )
        values = [*parts.values(), sum(parts.values())]
        table.add_row(str(stage), *(f"{value:.2f}" for value in values))
    console.print(table)


def print_steps(
    config: RunConfig, samples: int | None, num_nodes: int, step_s: float | None
) -> None:
    """Print the steps of the run and, from a measured step time, its node-hours.

    Args:
        samples: number of training clips; None counts those in the recipe's shards.
        num_nodes: number of nodes of the run.
        step_s: measured time of a step, in seconds; None prints no node-hours.
    Raises ConfigError when the clips do not fill a batch.
    """
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if samples is None:
        try:
            samples = len(open_shards(config.data.train, config.data.train_split))
        except DataError as error:
            console.print(f"steps                unknown, give --samples: {one_line(str(error))}")
            return
    steps_per_epoch = samples // config.batch.global_size
    if not steps_per_epoch:
        raise ConfigError(
            f"batch.global_size={config.batch.global_size} is more than the {samples} clips of an "
            f"epoch: set it to {samples} or less"
        )
    steps = Schedule(config.schedule, config.optim.lr, steps_per_epoch).total_steps
    console.print(
        f"steps per epoch      {steps_per_epoch:,} ({samples:,} clips)\n"
        f"steps                {steps:,} ({steps / steps_per_epoch:.4g} epochs)"
    )
    if step_s is None:
        console.print(
            "node-hours           give --step-s, as `vmp bench step` or a run measures it"
        )
        return
    hours = steps * step_s / 3600
    console.print(
        f"node-hours           {hours * num_nodes:,.1f} ({hours:,.1f} h on {num_nodes} nodes; "
        "evaluation and saving come on top)"
    )
