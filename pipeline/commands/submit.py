"""From a recipe to a submitted job: what `vmp submit` and `vmp demo` share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import typer

from pipeline import exits
from pipeline.assemble import open_data
from pipeline.config import RunConfig, load_config
from pipeline.record import rundir
from slurm import launch
from slurm.errors import ClusterError
from slurm.executor import Cluster
from slurm.profile import load_profile


def submit_run(
    recipe: str,
    overrides: Sequence[str],
    cluster: Cluster,
    profile: Path | None,
    nodes: int,
    gpus_per_node: int | None,
    follow: bool,
    dry_run: bool = False,
) -> int:
    """Submit a run and, with `follow`, wait for it; returns its exit status.

    `dry_run` prints what sbatch would get and writes nothing. Raises ConfigError or ClusterError
    before anything is submitted.
    """
    config = load_config(recipe, overrides)
    cluster_profile = load_profile(profile)
    gpus, ranks = _layout(config, gpus_per_node)
    config.batch_split(nodes * ranks)
    if dry_run:
        if cluster != "slurm":
            raise ClusterError("--dry-run shows the sbatch text: it needs --cluster slurm")
        text = launch.dry_run(
            config.run_dir, cluster_profile, nodes=nodes, ranks_per_node=ranks, gpus_per_node=gpus
        )
        typer.echo(text, nl=False)
        return exits.DONE
    open_data(config)
    run_dir = rundir.prepare(config)
    submission = launch.submit(
        run_dir,
        cluster,
        cluster_profile,
        nodes=nodes,
        ranks_per_node=ranks,
        gpus_per_node=gpus,
    )
    how = "submitted" if submission.job is not None else "already submitted"
    typer.echo(f"{how}: job {submission.job_id} ({cluster}), run {run_dir}, log {submission.log}")
    if not follow:
        return exits.DONE
    status = launch.wait(submission, typer.echo)
    if status == exits.RESUMABLE:
        typer.echo("stopped with a committed checkpoint; the same command goes on from there")
    return status


def _layout(config: RunConfig, gpus_per_node: int | None) -> tuple[int, int]:
    """(GPUs per node, ranks per node)."""
    gpus = torch.cuda.device_count() if gpus_per_node is None else gpus_per_node
    return gpus, gpus or config.launch.ranks_per_node or 1
