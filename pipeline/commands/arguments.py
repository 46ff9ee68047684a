"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


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
