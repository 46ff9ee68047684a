"""`vmp reproduce`: what a row of a paper's table claims and takes; submission of its stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_prep.schema import QUARANTINE_NAME
from pipeline import exits
from pipeline.commands.program import vmp
from pipeline.commands.submit import Order, check_runs, submit_run
from pipeline.commands.table import print_table
from pipeline.config import load_config
from pipeline.data.shards import open_shards
from pipeline.data.storage import is_url
from pipeline.errors import ConfigError
from pipeline.reproduce import report
from pipeline.reproduce.chain import Stage, chain_of, origins
from pipeline.reproduce.cost import Speed
from pipeline.reproduce.report import ShardCounts, View
from pipeline.reproduce.rows import Row, Tables, load_tables
from pipeline.reproduce.shards import dataset_of
from pipeline.rundir.records import lines
from pipeline.terminal import say
from slurm import launch


def list_rows() -> None:
    """Print all rows with their recipes and the first claim of each."""
    tables = load_tables()
    table = []
    for name, row in tables.rows.items():
        bounds = [report.claim_bounds(claim, tables) for claim in row.claims[:1]]
        figure = "".join(f"{a:.1f}" if a == b else f"{a:.1f} to {b:.1f}" for a, b in bounds)
        source = "".join(claim.source for claim in row.claims[:1])
        table.append([name, ", ".join(row.recipes), figure, source])
    print_table(["row", "recipe", "claimed top-1", "source"], table)


def show_row(
    name: str,
    overrides: Sequence[str],
    *,
    shards: Sequence[str],
    runs_dir: Path,
    init: Sequence[str],
    gpus_per_node: int,
    clips_s: float | None,
) -> None:
    """Print everything about a row.

    Args:
        shards, init: see `submit_row`.
        clips_s: measured clips per second and GPU of the row's own model; None = as published.
    Raises ConfigError or DataError.
    """
    tables = load_tables()
    row = tables.row(name)
    weights = _weights(init, row)
    stages = chain_of(row.recipes, [f"runs_dir={runs_dir}", *overrides], weights)
    final = _final(row, stages)
    held = _count_shards(shards, dataset_of(final.config))
    view = View(runs_dir, _speed(tables, final, clips_s), held, gpus_per_node)
    say(name)
    _say_section("claimed", report.claims(row, tables))
    _say_section("test views", [report.test_views(final.config)])
    _say_section("chain", report.chain(stages))
    _say_section("data", report.data(stages, view, tables))
    _say_section("cost", report.costs(stages, view, tables))
    _say_section("ours", report.outcome(row, stages, view, tables))
    say(f"submit the chain: {vmp()} reproduce {name} --submit --cluster slurm --nodes N")


def submit_row(
    name: str,
    overrides: Sequence[str],
    order: Order,
    *,
    shards: Sequence[str],
    runs_dir: Path,
    init: Sequence[str],
) -> int:
    """Submit the stages of a row, each after those whose weights it needs; return the exit status.

    On SLURM all jobs are submitted at once. On this machine each stage is waited for, and the first
    that does not finish ends the chain. Finished stages are passed over. With `order.dry_run`,
    nothing is written.

    Args:
        shards: entries NAME=DIR, or DIR for the data set of the row itself.
        init: entries RECIPE=WEIGHTS, or WEIGHTS for what the row's own recipe starts from. The
            weights stand for the run of that recipe.
    Raises ConfigError, DataError or ClusterError before anything is submitted.
    """
    row = load_tables().row(name)
    weights = _weights(init, row)
    stages = chain_of(row.recipes, [f"runs_dir={runs_dir}", *overrides], weights)
    located = _locations(shards, dataset_of(_final(row, stages).config))
    asked = {}
    for stage in stages:
        location = located.get(dataset_of(stage.config))
        asked[stage.recipe] = [*stage.overrides, *([f"data.train={location}"] if location else [])]
        if order.cluster == "slurm" or not order.dry_run:
            awaited = set(stage.origin.inputs.values()) - weights.keys()
            check_runs(stage.recipe, asked[stage.recipe], order, weights_exist=not awaited)
    jobs: dict[str, str] = {}
    for number, stage in enumerate(stages, 1):
        recipe, own = stage.recipe, asked[stage.recipe]
        before = [jobs[source] for source in stage.origin.inputs.values() if source in jobs]
        after = f" (after {', '.join(before)})" if before else ""
        say(f"stage {number} of {len(stages)}: {vmp()} submit {recipe} {' '.join(own)}{after}")
        if order.dry_run:
            jobs[recipe] = f"stage {number}"
            if order.cluster == "slurm":
                submit_run(recipe, own, order)
            continue
        is_local = order.cluster == "local"
        step = dataclasses.replace(order, follow=is_local, after=":".join(before) or None)
        status = submit_run(recipe, own, step)
        if status != exits.DONE:
            return status
        submission = None if is_local else launch.find_running(load_config(recipe, own).run_dir)
        if submission is not None:
            jobs[recipe] = submission.job_id
    return exits.DONE


def _weights(init: Sequence[str], row: Row) -> dict[str, Path]:
    """Return recipe -> the weights that stand for its run."""
    weights = {}
    for entry in init:
        recipe, equals, file = entry.partition("=")
        if not equals:
            file = entry
            started = origins().get(row.recipes[0])
            source = started.inputs.get("init_from") if started is not None else None
            if source is None:
                raise ConfigError(
                    f"--init {entry}: {row.recipes[0]} starts from fresh weights; for another "
                    "stage give RECIPE=WEIGHTS"
                )
            recipe = source
        if not Path(file).exists():
            raise ConfigError(f"--init {entry}: there is no file and no run {file}")
        weights[recipe] = Path(file)
    return weights


def _final(row: Row, stages: Sequence[Stage]) -> Stage:
    return next(stage for stage in stages if stage.recipe == row.recipes[0])


def _say_section(title: str, texts: Iterable[str]) -> None:
    say(f"\n{title}")
    for text in texts:
        say(f"  {text}")


def _speed(tables: Tables, final: Stage, clips_s: float | None) -> Speed:
    if clips_s is not None:
        return Speed(clips_s, final.config.model, f"--clips-s, {final.recipe}")
    published = tables.throughput
    model = load_config(published.recipe).model
    source = f"{published.gpu}, {published.recipe}; {published.where}"
    return Speed(published.clips_s, model, source)


def _locations(shards: Sequence[str], own: str) -> dict[str, str]:
    """Return data set -> shard directory; an entry without a name is for the data set `own`."""
    located: dict[str, str] = {}
    for entry in shards:
        name, equals, location = entry.partition("=")
        name, location = (name, location) if equals else (own, entry)
        if not location:
            raise ConfigError(f"--shards {entry}: must be DIR or NAME=DIR")
        located[name] = location
    return located


def _count_shards(shards: Sequence[str], own: str) -> dict[str, ShardCounts]:
    held = {}
    for name, location in _locations(shards, own).items():
        manifest = open_shards(location).manifest
        quarantine = [] if is_url(location) else lines(Path(location) / QUARANTINE_NAME)
        held[name] = ShardCounts(
            location, dict(manifest.splits), len(manifest.classes), len(quarantine)
        )
    return held
