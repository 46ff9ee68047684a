"""What `vmp reproduce ROW` says, as lines of text under a heading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import RunConfig
from pipeline.inference.statistics import wilson_of_share
from pipeline.reproduce import cost, results, shards, weights
from pipeline.reproduce.chain import Stage
from pipeline.reproduce.cost import Speed
from pipeline.reproduce.results import Estimate, Result
from pipeline.reproduce.rows import Claim, Row, Tables

_TEACHER = "task.teacher.path"
_UNCOUNTED = {
    "classification": "",
    "distillation": ", without the teacher",
    "masked": ", for whole clips and without the teacher",
}


@dataclass(frozen=True)
class ShardCounts:
    """What a shard directory holds."""

    location: str
    splits: dict[str, int]
    num_classes: int
    left_out: int
    """Inputs in quarantine."""


@dataclass(frozen=True)
class View:
    """What of this machine a report is about."""

    runs_dir: Path
    speed: Speed
    shards: dict[str, ShardCounts]
    """Data set -> what its shards hold."""
    gpus_per_node: int = 8


def claim_bounds(claim: Claim, tables: Tables) -> tuple[float, float]:
    """Return the lowest and highest top-1 that a claim states, in per cent."""
    if claim.top1 is not None:
        return claim.top1, claim.top1
    assert claim.over is not None
    assert claim.gain is not None
    (base,) = {c.top1 for c in tables.row(claim.over).claims if c.top1 is not None}
    return base + claim.gain[0], base + claim.gain[1]


def claims(row: Row, tables: Tables) -> Iterator[str]:
    """Yield a line per claim, with its source."""
    for claim in row.claims:
        source = tables.sources[claim.source]
        low, high = claim_bounds(claim, tables)
        figure = f"{low:.1f} %"
        if claim.gain is not None:
            figure = (
                f"{claim.gain[0]} to {claim.gain[1]} points above {claim.over}, so {low:.1f} to "
                f"{high:.1f} %"
            )
        views = f", at {claim.views} views" if claim.views else ""
        note = f" ({source.note})" if source.note else ""
        yield f"top-1 {figure}{views}: {source.where}{note}"
    if not row.claims:
        yield "none that we could trace"
    if row.note:
        yield f"note: {row.note}"


def test_views(config: RunConfig) -> str:
    """Return the test views of a recipe in words."""
    model, evaluation = config.model, config.eval
    return (
        f"{evaluation.clips} clips x {evaluation.crops} crops of {model.num_frames} frames at "
        f"{model.img_size} px, {config.data.sampling} sampling"
    )


def chain(stages: Sequence[Stage]) -> Iterator[str]:
    """Yield lines about every stage: its recipe, its settings, and what it starts from."""
    by_recipe = {stage.recipe: stage for stage in stages}
    for number, stage in enumerate(stages, 1):
        config = stage.config
        yield (
            f"{number}. {stage.recipe}: {config.schedule.epochs:g} epochs on {config.data.train}, "
            f"{config.batch.global_size} videos a step, lr {config.optim.lr:g}"
        )
        if "init_from" not in stage.origin.inputs:
            yield "   starts from fresh weights"
        if config.task.kind != "classification" and _TEACHER not in stage.origin.inputs:
            yield f"   {_TEACHER}: {_input(config, _TEACHER)}, which no stage makes"
        for field, source in stage.origin.inputs.items():
            path = _input(config, field)
            if source not in by_recipe:
                yield f"   {field}: {path}, in place of the run of {source}"
                continue
            yield f"   {field}: the run of {source}, {path}"
            if by_recipe[source].origin.released is not None and field == "init_from":
                file, start = weights.describe(by_recipe[source], stage)
                yield from (f"   or {file}", f"      {start}")


def _input(config: RunConfig, field: str) -> str:
    node: object = config
    for part in field.split("."):
        node = getattr(node, part)
    return str(node)


def data(stages: Sequence[Stage], view: View, tables: Tables) -> Iterator[str]:
    """Yield lines about every data set of a chain, compared with the shards where there are any."""
    for name in dict.fromkeys(shards.dataset_of(stage.config) for stage in stages):
        facts = tables.datasets.get(name)
        if facts is None:
            yield f"{name}: not a data set of the papers"
            continue
        listed = ", ".join(f"{split} {count:,}" for split, count in facts.splits.items())
        yield f"{name}: {facts.title}, {listed} ({facts.counted})"
        held = view.shards.get(name)
        if held is None:
            yield f"   not compared: give --shards {name}=DIR"
            continue
        yield f"   shards {held.location}"
        found = shards.compare(facts, held.splits, held.num_classes, held.left_out)
        yield from (f"   {line}" for line in found)


def costs(stages: Sequence[Stage], view: View, tables: Tables) -> Iterator[str]:
    """Yield the node-hours of every stage and their sum, and whether they are measured."""
    total = 0.0
    for stage in stages:
        name = shards.dataset_of(stage.config)
        held, facts = view.shards.get(name), tables.datasets.get(name)
        samples = held.splits.get("train") if held else facts.splits["train"] if facts else None
        if not samples:
            yield f"{stage.recipe}: unknown, since the number of its training clips is"
            continue
        if samples < stage.config.batch.global_size:
            yield f"{stage.recipe}: no step, since {samples} training clips do not fill a batch"
            continue
        run_dir = stage.config.run_dir
        hours = cost.measured_gpu_hours(run_dir, stage.config, samples)
        how = f"measured, step times of {run_dir}"
        if hours is None:
            hours, how = view.speed.gpu_hours(stage.config, samples), "stated"
            how += _UNCOUNTED[stage.config.task.kind]
        total += hours
        yield f"{stage.recipe}: {hours / view.gpus_per_node:,.1f} node-hours ({how})"
    yield f"sum: {total / view.gpus_per_node:,.1f} node-hours of {view.gpus_per_node} GPUs"
    yield (
        f"stated = {view.speed.clips_s:g} clips/s per GPU ({view.speed.source}), scaled by FLOPs; "
        "evaluation and saving come on top"
    )


def outcome(row: Row, stages: Sequence[Stage], view: View, tables: Tables) -> Iterator[str]:
    """Yield our results beside the claims, each with its interval."""
    by_recipe = {stage.recipe: stage.config for stage in stages}
    folds = []
    for recipe in row.recipes:
        found = results.results_of(view.runs_dir, recipe, by_recipe[recipe])
        yield from map(_result_line, found)
        if exact := [result for result in found if not result.differs]:
            folds.append(results.over_seeds(exact))
        else:
            yield f"{recipe}: no finished run with its settings in {view.runs_dir}"
    if len(folds) < len(row.recipes):
        return
    ours = results.over_folds(folds)
    what = f"mean of {len(folds)} folds" if len(folds) > 1 else "ours"
    yield f"{what}: {ours.top1:.2%} ({ours.low:.2%} to {ours.high:.2%}, 95 % interval)"
    for claim in row.claims:
        yield _beside(claim, tables, ours)


def _result_line(result: Result) -> str:
    if result.differs:
        shown = ", ".join(result.differs[:6]) + (", ..." if len(result.differs) > 6 else "")
        return f"{result.run_dir}: not counted, since it differs from the recipe in {shown}"
    low, high = result.interval
    return (
        f"{result.run_dir}: {result.top1:.2%} of {result.num_samples:,} videos "
        f"({low:.2%} to {high:.2%})"
    )


def _beside(claim: Claim, tables: Tables, ours: Estimate) -> str:
    least, most = (bound / 100 for bound in claim_bounds(claim, tables))
    # A published figure is an estimate too, from as many videos as ours.
    low = wilson_of_share(least, ours.num_samples)[0]
    high = wilson_of_share(most, ours.num_samples)[1]
    verdict = "overlap" if ours.low <= high and low <= ours.high else "are apart"
    figure = f"{least:.1%}" if least == most else f"{least:.1%} to {most:.1%}"
    gap = ours.top1 - min(max(ours.top1, least), most)
    return (
        f"theirs, {claim.source}: {figure} ({low:.2%} to {high:.2%}); ours is {100 * gap:+.2f} "
        f"points from it, and the intervals {verdict}"
    )
