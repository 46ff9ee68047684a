"""The entry point of `vmp`. Only this module and `commands` may import all four packages.

Each command imports what it needs when it runs, so that `vmp --help` answers at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal

import typer

from pipeline.commands import bench, data, jobs, predict, study
from pipeline.isolation import isolate, set_umask
from pipeline.terminal import AsJson, one_line, say

app = typer.Typer(
    name="vmp",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(data.app, name="data")
app.add_typer(jobs.app, name="jobs")
app.add_typer(bench.app, name="bench")
app.command()(predict.predict)
app.add_typer(study.app, name="study")


def complete_field(typed: str) -> list[str]:
    """Complete an override in the shell with the fields of the configuration."""
    from pipeline.config import field_names

    fields = dict.fromkeys(field_names())  # tasks share some
    return [f"{name}=" for name in fields if name.startswith(typed)]


def complete_recipe(typed: str) -> list[str]:
    """Complete a recipe in the shell with shipped recipes and YAML files of this directory."""
    from pipeline.config import shipped_recipes

    files = [str(path) for path in Path().glob("*.yaml")]
    return [name for name in [*shipped_recipes(), *files] if name.startswith(typed)]


Recipe = Annotated[
    str,
    typer.Argument(
        help="A .yaml file, or the name of a shipped recipe.", autocompletion=complete_recipe
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Any field of the recipe: optim.lr=1e-3 ...", autocompletion=complete_field
    ),
]
Raw = Annotated[
    bool, typer.Option("--raw", help="Use the last weights, not their moving average (ema).")
]
Weights = Annotated[
    Path,
    typer.Argument(help="A run (RUN@best or RUN@last), a checkpoint, or a file of weights."),
]
Cluster = Literal["local", "slurm"]
_LONGEST = 2000  # an error may quote a long line of a file, so this many characters are shown


def main() -> None:
    """Run a command; bad input is one line and exit status 2, a failing machine one and status 1.

    The latter is a full disk, an I/O error or too little memory; the same command goes on later.
    """
    isolate()
    set_umask(private=False)
    sys.excepthook = _report
    try:
        app()
    except Exception as error:
        known = _status_and_line(error)
        if known is None:
            raise
        status, line = known
        say(f"error: {one_line(line)[:_LONGEST]}", err=True)
        sys.exit(status)


def _status_and_line(error: Exception) -> tuple[int, str] | None:
    """What ends a command on an error that has a known cause; None for a fault of ours."""
    from data_prep.errors import MachineTrouble, is_of_machine
    from pipeline import exits

    if isinstance(error, ValueError):
        line = exits.user_error(error)
        return None if line is None else (exits.BAD_INPUT, line)
    if isinstance(error, MachineTrouble):
        return exits.FAILED, str(error)
    if isinstance(error, OSError) and is_of_machine(error):
        return exits.FAILED, f"{error}; run the same command again once the machine has recovered"
    return None


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        say(f"videomambapro {version('videomambapro')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and stop.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """VideoMambaPro: shard videos, train on SLURM with DeepSpeed, track in MLflow."""


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback through `say`, which hides secrets that it may quote."""
    say("".join(traceback.format_exception(kind, error, trace)), err=True, nl=False)


@app.command()
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


@app.command()
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


@app.command("eval")
def eval_command(
    checkpoint: Weights,
    data: Annotated[Path, typer.Argument(help="Shard directory.")],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory for JSON, a table of predictions and pictures.")
    ] = None,
) -> None:
    """Evaluate weights: every sample once, with intervals, calibration and accuracy by class.

    Example: vmp eval runs/demo@best demo/shards --out demo/best eval.clips=2
    """
    from pipeline.commands.evaluate import run_eval

    run_eval(checkpoint, data, overrides or [], out)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A directory of vmp eval --out, or weights.")],
    second: Annotated[Path, typer.Argument(help="The other one, of the same videos and views.")],
    overrides: Overrides = None,
    data: Annotated[
        Path | None, typer.Option(help="Shard directory on which to evaluate weights first.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write the comparison to.")] = None,
) -> None:
    """Test whether two sets of weights differ by more than chance on the same videos (McNemar).

    Example: vmp compare demo/best demo/last
    """
    from pipeline.commands.compare import run_compare

    run_compare(first, second, data, overrides or [], out)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Released weights, .pth or .safetensors.")],
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    model: Annotated[str | None, typer.Option(help="Preset to fit; default: unchanged.")] = None,
    num_frames: Annotated[
        int | None, typer.Option(min=1, help="Frames per clip; default: unchanged.")
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Classes; a head of another size is initialised anew.")
    ] = None,
    allow_lossy: Annotated[
        bool,
        typer.Option("--allow-lossy", help="Merge two directions into one, which is not exact."),
    ] = False,
    ema: Annotated[
        bool, typer.Option("--ema", help="Read the moving average in a training checkpoint.")
    ] = False,
    keep_rest: Annotated[
        bool,
        typer.Option("--keep-rest", help="Keep other heads and teachers too, for --back."),
    ] = False,
    back: Annotated[
        bool, typer.Option("--back", help="Write the original of a converted file, bit for bit.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Print the logits of both files on a seeded input.")
    ] = False,
) -> None:
    """Convert released VideoMamba or VideoMambaPro weights to this project's format, or back.

    Example: vmp convert videomamba_m16_k400.pth m16.safetensors --verify
    """
    from pipeline.commands.convert import check_out, convert_back, convert_weights

    check_out(source, out)
    if back:
        sys.exit(convert_back(source, out))
    fields = {"num_frames": num_frames, "num_classes": num_classes}
    status = convert_weights(
        source,
        out,
        model,
        allow_lossy=allow_lossy,
        keep_rest=keep_rest,
        ema=ema,
        verify=verify,
        fields={key: value for key, value in fields.items() if value is not None},
    )
    if status:
        sys.exit(status)


@app.command()
def export(
    run: Weights,
    out: Annotated[
        Path, typer.Argument(help="The .safetensors, .pth, .pt2 or .onnx file, or a folder.")
    ],
    raw: Raw = False,
) -> None:
    """Write a trained model to one file with classes, sampling and model configuration.

    The suffix decides: .safetensors or .pth for weights, .pt2 for a program of torch.export, .onnx
    for ONNX, none for a folder in the form of the Hugging Face Hub.

    Example: vmp export runs/demo@best demo.onnx
    """
    from pipeline.inference.export import export_weights

    say(export_weights(run, out, raw=raw))


@app.command()
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    world: Annotated[int, typer.Option(min=1, help="GPUs in all.")] = 8,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs of a node.")] = 8,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Training clips, if there are no shards yet.")
    ] = None,
    step_s: Annotated[
        float | None, typer.Option(min=0, help="Seconds per step, measured on these GPUs.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print parameters, FLOPs, memory per GPU at every ZeRO stage, steps, node-hours without a GPU.

    Example: vmp plan k400_m16_f16 --world 16 --samples 240000 --step-s 1.5
    """
    from pipeline.commands.plan import make_plan, print_plan
    from pipeline.config import load_config
    from pipeline.terminal import say_json

    config = load_config(recipe, overrides or [])
    made = make_plan(config, world, -(-world // gpus_per_node), samples=samples, step_s=step_s)
    say_json(made) if as_json else print_plan(made)


@app.command()
def config(
    recipe: Recipe,
    section: Annotated[
        str | None, typer.Argument(help="One section, such as optim or data.crop.")
    ] = None,
    overrides: Overrides = None,
    origins: Annotated[
        bool, typer.Option("--origins", help="Say which file states each value, not its meaning.")
    ] = False,
) -> None:
    """Print the fields of a recipe: type, value, default, meaning, and if it may change on resume.

    Example: vmp config demo optim
    """
    from pipeline.commands.config import print_config
    from pipeline.config import load_config, value_origins

    given = overrides or []
    if section is not None and "=" in section:
        given, section = [section, *given], None
    config = load_config(recipe, given)
    print_config(config, section, value_origins(recipe, given) if origins else None)


@app.command()
def recipes(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the tables of docs/recipes.md.")
    ] = False,
) -> None:
    """List the shipped recipes with their settings.

    Example: vmp recipes
    """
    from pipeline.commands.recipes import list_recipes, markdown_tables

    if markdown:
        say(markdown_tables())
    else:
        list_recipes()


@app.command()
def reproduce(
    row: Annotated[
        str | None, typer.Argument(help="A row such as k400/videomambapro-m/f32; default: list.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Fields of every stage: batch.max_micro=4 ...")
    ] = None,
    shards: Annotated[
        list[str] | None,
        typer.Option(help="Shards of the row's data set, or NAME=DIR for that of another stage."),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Directory of the runs.")] = Path("runs"),
    init: Annotated[
        list[str] | None,
        typer.Option(help="Weights the row starts from, or RECIPE=WEIGHTS for another stage."),
    ] = None,
    submit: Annotated[bool, typer.Option("--submit", help="Submit the chain of stages.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --submit: print the chain, submit nothing.")
    ] = False,
    cluster: Annotated[Cluster, typer.Option(help="local runs here, stage after stage.")] = "local",
    profile: Annotated[Path | None, typer.Option(help="Cluster profile, YAML.")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of each stage.")] = 1,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=0, help="GPUs per node; of the cost too, by default of 8.")
    ] = None,
    clips_s: Annotated[
        float | None,
        typer.Option(min=1e-6, help="Clips/s of a GPU on the row's model, as vmp bench measures."),
    ] = None,
) -> None:
    """Show what a row of the papers' tables claims and takes, and our runs beside it; or submit it.

    Example: vmp reproduce k400/videomambapro-m/f32 --shards shards/k400
    """
    from pipeline.commands.reproduce import list_rows, show_row, submit_row
    from pipeline.commands.submit import Order

    if row is None:
        list_rows()
    elif submit:
        order = Order(cluster, profile, nodes, gpus_per_node, dry_run=dry_run)
        status = submit_row(
            row, overrides or [], order, shards=shards or [], runs_dir=runs, init=init or []
        )
        sys.exit(status)
    else:
        show_row(
            row,
            overrides or [],
            shards=shards or [],
            runs_dir=runs,
            init=init or [],
            gpus_per_node=gpus_per_node or 8,
            clips_s=clips_s,
        )


@app.command()
def audit(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    places: Annotated[
        list[str] | None,
        typer.Argument(help="data.train=DIR, data.val=DIR: where the shards lie today."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Do not read the bytes of the shards again.")
    ] = False,
    as_json: AsJson = False,
    html: Annotated[Path | None, typer.Option(help="Write the report as a page.")] = None,
) -> None:
    """Prove from its records that a run saw exactly the samples it should, over all attempts.

    The exit status is 0 if that is proven, 1 if it is disproven, and 2 if it cannot be judged.

    Example: vmp audit runs/demo --html audit.html
    """
    from pipeline.commands.audit import audit_run

    sys.exit(audit_run(run, places or [], quick=quick, as_json=as_json, html=html))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check this machine and say what to do. The exit status is 1 when something must be done.

    Example: vmp doctor
    """
    from pipeline.commands.doctor import examine

    sys.exit(examine(as_json=as_json))


@app.command()
def demo(
    overrides: Overrides = None,
    root: Annotated[Path, typer.Option(help="Directory for all files.")] = Path(),
    train_clips: Annotated[int, typer.Option(min=1, help="Videos to render for training.")] = 6000,
    val_clips: Annotated[int, typer.Option(min=1, help="Videos to render for validation.")] = 800,
) -> None:
    """Run everything once on this machine: videos, shards, a training job, evaluation, MLflow.

    Example: vmp demo
    """
    from pipeline.commands.demo import run_demo

    sys.exit(run_demo(root, overrides or [], {"train": train_clips, "val": val_clips}))


@app.command()
def ui(
    runs: Annotated[Path, typer.Option(help="Directory of the runs.")] = Path("runs"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
) -> None:
    """Show the runs in MLflow's web page, served to this machine only.

    Example: vmp ui --runs runs
    """
    from pipeline.commands.ui import serve_ui

    sys.exit(serve_ui(runs, port, say))


if __name__ == "__main__":
    main()
