"""`vmp plan`, `config`, `recipes` and `reproduce`: what can be said of a run before it starts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.arguments import Cluster, Overrides, Recipe
from pipeline.terminal import AsJson, say


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
