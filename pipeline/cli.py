"""`vmp`: the composition root, the only module that may import all four packages.

Commands import what they need when they run, so that `vmp --help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    name="vmp",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="VideoMambaPro: shard videos, train on SLURM with DeepSpeed, track in MLflow.",
)
data_app = typer.Typer(no_args_is_help=True, help="Make and inspect shard directories.")
app.add_typer(data_app, name="data")

Recipe = Annotated[str, typer.Argument(help="A .yaml file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Any field of the recipe: optim.lr=1e-3 ...")
]
Cluster = Literal["local", "slurm"]


def main() -> None:
    """Run a command; bad input becomes one line on stderr and exit status 2."""
    try:
        app()
    except ValueError as error:
        from pipeline import exits

        if not isinstance(error, exits.USER_ERRORS):
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(exits.BAD_INPUT)


@data_app.command("synth")
def data_synth(
    out: Annotated[Path, typer.Option(help="Directory for the videos and annotations.csv.")],
    train: Annotated[int, typer.Option(help="Clips of the training split.")] = 6000,
    val: Annotated[int, typer.Option(help="Clips of the validation split.")] = 800,
    seed: int = 0,
) -> None:
    """Render videos whose class is the motion of a letter.

    Example: vmp data synth --out glyphs
    """
    from data_prep.synthetic import SynthOptions, synthesize

    options = SynthOptions(clips_per_split={"train": train, "val": val}, seed=seed)
    typer.echo(synthesize(out, options))


@data_app.command("shard")
def data_shard(
    format: Annotated[str, typer.Option(help="csv, folder, kinetics, ssv2, ucf101 or hmdb51.")],
    videos: Annotated[Path, typer.Option(help="Directory of the videos.")],
    out: Annotated[str, typer.Option(help="Shard directory to make or complete.")],
    annotations: Annotated[Path | None, typer.Option(help="Annotation file or directory.")] = None,
    split: Annotated[str, typer.Option(help="For clips whose annotation names none.")] = "train",
    jobs: Annotated[int, typer.Option(min=1, help="Jobs that claim shards.")] = 1,
) -> None:
    """Probe, re-encode and pack videos into sealed WebDataset shards; safe to kill and repeat.

    Example: vmp data shard --format folder --videos my_videos --out shards
    """
    from data_prep.options import ShardConfig
    from data_prep.shard import shard

    config = ShardConfig(
        format=format, videos=videos, annotations=annotations, out=out, split=split, jobs=jobs
    )
    manifest = shard(config)
    counts = ", ".join(f"{name} {count}" for name, count in manifest.splits.items())
    typer.echo(f"{out}: {len(manifest.classes)} classes; samples: {counts}")


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the resolved configuration and stop.")
    ] = False,
) -> None:
    """Train on this machine, one process per device; under torchrun or srun, be one rank.

    Example: vmp train demo optim.lr=1e-3
    """
    from pipeline import rundir
    from pipeline.config import load_config

    config = load_config(recipe, overrides or [])
    if print_config:
        typer.echo(config.to_yaml(), nl=False)
        return
    run_dir = rundir.prepare(config)
    from pipeline import spawn
    from pipeline.train import run

    ranks = spawn.ranks_here(config.launch)
    one_process = spawn.inside_launcher() or ranks == 1
    sys.exit(run(run_dir) if one_process else spawn.run_ranks(run_dir, ranks))


@app.command()
def submit(
    recipe: Recipe,
    overrides: Overrides = None,
    cluster: Annotated[Cluster, typer.Option(help="local runs here, through Submitit.")] = "local",
    profile: Annotated[Path | None, typer.Option(help="Cluster profile, YAML.")] = None,
    nodes: Annotated[int, typer.Option(min=1)] = 1,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=0, help="GPUs (and ranks) per node; default: those here.")
    ] = None,
    follow: Annotated[bool, typer.Option(help="Show the log and wait for the end.")] = True,
) -> None:
    """Submit a training run through Submitit; the same command resumes a run that has stopped.

    Example: vmp submit demo --cluster local
    """
    from pipeline import launch

    sys.exit(launch.submit(recipe, overrides or [], cluster, profile, nodes, gpus_per_node, follow))


@app.command("eval")
def eval_command(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run directory.")],
    data: Annotated[Path, typer.Argument(help="Shard directory.")],
    overrides: Overrides = None,
) -> None:
    """Evaluate a checkpoint: every sample once.

    Example: vmp eval runs/demo demo/shards eval.shuffle_frames=true
    """
    from pipeline.evaluate_checkpoint import evaluate_checkpoint

    result = evaluate_checkpoint(checkpoint, data, overrides or [])
    typer.echo(
        f"top1 {result.top1:.4f}  top5 {result.top5:.4f}  loss {result.loss:.4f}  "
        f"samples {result.num_samples}"
    )


@app.command()
def demo(
    overrides: Overrides = None,
    root: Annotated[Path, typer.Option(help="Where everything goes.")] = Path(),
    train_clips: Annotated[int, typer.Option(min=1, help="Videos to render and learn.")] = 6000,
    val_clips: Annotated[int, typer.Option(min=1, help="Videos to test on.")] = 800,
) -> None:
    """The whole road on this machine: videos, shards, a submitted training, evaluation, MLflow.

    Example: vmp demo
    """
    from pipeline.demo import run_demo

    sys.exit(run_demo(root, overrides or [], {"train": train_clips, "val": val_clips}))


@app.command()
def ui(
    runs: Annotated[Path, typer.Option(help="Directory of the runs.")] = Path("runs"),
    port: int = 5000,
) -> None:
    """Open the MLflow UI on the run store; serves on this machine only.

    Example: vmp ui --runs runs
    """
    from pipeline.tracking import serve_ui

    sys.exit(serve_ui(runs, port))


if __name__ == "__main__":
    main()
