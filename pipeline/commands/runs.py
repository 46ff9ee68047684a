"""`vmp train` and `vmp submit`: the options; `train`, `slurm` and `submit` do the work."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.arguments import Cluster, Overrides, Recipe
from pipeline.terminal import say


def train(
    recipe: Recipe,
    overrides: Overrides = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the resolved configuration and stop.")
    ] = False,
) -> None:
    """Train on this machine, one process per device. Under torchrun or srun, run one rank.

    Example: vmp train demo optim.lr=1e-3
    """
    from pipeline import rundir
    from pipeline.config import load_config

    config = load_config(recipe, overrides or [])
    if print_config:
        say(config.to_yaml(), nl=False)
        return
    from pipeline.commands.finished import finished
    from pipeline.prepare import check_start, prepare_run
    from pipeline.training import ranks
    from slurm import ranks as slurm_ranks

    if not ranks.inside_launcher():  # srun may have started torchrun, which then decides
        os.environ.update(slurm_ranks.of_own_step())

    # A run that cannot work is refused here, once, before any rank starts or a directory is made.
    check_start(config, ranks.num_ranks(config.launch))
    is_first = ranks.rank_by_environment() == 0
    if is_first:  # for the other ranks, rank 0 is that active process
        rundir.refuse_active(config.run_dir)
    if (summary := finished(config)) is not None:
        if is_first:
            say(summary.line(config.run_dir))
        return
    run_dir = prepare_run(config)

    if not ranks.inside_launcher() and ranks.ranks_here(config.launch) > 1:
        from pipeline.training.spawn import run_ranks

        sys.exit(run_ranks(run_dir, ranks.ranks_here(config.launch)))
    from pipeline.training.train import run

    sys.exit(run(run_dir))


def submit(
    recipe: Recipe,
    overrides: Overrides = None,
    cluster: Annotated[Cluster, typer.Option(help="local runs here, through Submitit.")] = "local",
    profile: Annotated[Path | None, typer.Option(help="Cluster profile, YAML.")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of each run.")] = 1,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=0, help="GPUs (and ranks) per node; default: those here.")
    ] = None,
    follow: Annotated[bool, typer.Option(help="Show the log and wait for the end.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the sbatch text, submit nothing.")
    ] = False,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="section.field=value,value,...: a run for every combination, one array."),
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Runs of a sweep at the same time.")
    ] = None,
    first: Annotated[
        str | None, typer.Option(help="A vmp command whose job must succeed before training.")
    ] = None,
    then: Annotated[
        str | None, typer.Option(help="A vmp command whose job follows a finished training.")
    ] = None,
    after: Annotated[str | None, typer.Option(help="Id of a job that must succeed first.")] = None,
) -> None:
    """Submit a training run through Submitit; the same command resumes a run that has stopped.

    Example: vmp submit k400_m16_f16 --cluster slurm --nodes 4 --gpus-per-node 8 --sweep seed=0,1
    """
    from pipeline.commands.submit import Order, submit_run

    order = Order(
        cluster=cluster,
        profile=profile,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        follow=follow,
        dry_run=dry_run,
        sweep=sweep or [],
        parallel=parallel,
        first=first,
        then=then,
        after=after,
    )
    status = submit_run(recipe, overrides or [], order)
    sys.exit(status)
