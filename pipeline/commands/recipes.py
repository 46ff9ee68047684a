"""`vmp recipes`: the shipped recipes, as a list and as the tables of docs/recipes.md."""

from __future__ import annotations

from pipeline.commands.table import print_table
from pipeline.config import build_config, shipped_recipes
from pipeline.config.auto import AUTO, DataFacts, settle
from pipeline.config.load import read_merged
from pipeline.config.recipe import description, groups, value_at
from pipeline.reproduce.chain import Origin, origins

_OWN = "This project"
_HEADER = (
    *("recipe", "frames x px", "videos per step", "learning rate", "epochs (warm-up)"),
    *("weight decay / drop path", "views at test", "starts from"),
)
# Stands for the shards from which values of `auto` follow; the tables say `auto` there.
_SOME = DataFacts(classes=2, clips=64)


def list_recipes() -> None:
    """Print a line per recipe."""
    print_table(_HEADER, [_cells(recipe) for recipe in shipped_recipes()])


def markdown_tables() -> str:
    """Return a heading, the text of its base, and a table for each group of recipes."""
    return "\n\n".join(_group(name, members) for name, members in groups().items())


def _group(name: str, recipes: list[str]) -> str:
    rows = [[f"`{recipe}`", description(recipe), *_cells(recipe)[1:]] for recipe in recipes]
    header = [_HEADER[0], "what it is", *_HEADER[1:]]
    table = [header, ["---"] * len(header), *rows]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in table)
    return "\n\n".join(part for part in (f"### {name or _OWN}", description(name), lines) if part)


def _cells(recipe: str) -> list[str]:
    raw = read_merged(recipe)
    config = build_config(settle(raw, lambda: _SOME), source=recipe)
    model, schedule, evaluation = config.model, config.schedule, config.eval

    def shown(key: str, text: str) -> str:
        return AUTO if value_at(raw, key) == AUTO else text

    warmup = shown("schedule.warmup_epochs", f"{schedule.warmup_epochs:.3g}")
    inputs = origins().get(recipe, Origin()).inputs
    return [
        recipe,
        f"{model.num_frames} x {model.img_size}",
        shown("batch.global_size", str(config.batch.global_size)),
        _scientific(config.optim.lr),
        f"{shown('schedule.epochs', f'{schedule.epochs:.3g}')} ({warmup})",
        f"{config.optim.weight_decay:g} / {model.drop_path_rate:g}",
        f"{evaluation.clips} x {evaluation.crops}",
        ", ".join(source for source in inputs.values()),
    ]


def _scientific(value: float) -> str:
    """Format a learning rate as in papers: 8e-4, 1.25e-6."""
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
