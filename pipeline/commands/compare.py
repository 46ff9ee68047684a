"""`vmp compare`: whether two sets of weights differ on the same videos by more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.commands.table import print_table
from pipeline.errors import ConfigError
from pipeline.inference.evaluate_checkpoint import evaluate_weights
from pipeline.inference.results import JSON_FILE, Results, read_results
from pipeline.inference.statistics import McNemar, bootstrap_difference, mcnemar
from pipeline.rundir import durable
from pipeline.terminal import say

_SIGNIFICANT = 0.05


def run_compare(
    first: Path, second: Path, data: Path | None, overrides: Sequence[str], out: Path | None
) -> None:
    """Compare two evaluations, or two sets of weights that are first evaluated on `data`.

    Raises ConfigError when they are not of the same videos in the same views, and what evaluation
    raises.
    """
    ours, theirs = (_results(path, data, overrides) for path in (first, second))
    refuse_unlike(ours, theirs, names=(str(first), str(second)))
    comparison = compare(ours, theirs)
    _print(comparison)
    if out is not None:
        try:
            durable.write_json(out, comparison)
        except OSError as error:
            raise ConfigError(f"{out}: cannot be written: {error.strerror}") from error


def _results(path: Path, data: Path | None, overrides: Sequence[str]) -> Results:
    if (path / JSON_FILE).exists():
        if overrides:
            raise ConfigError(f"{path}: is an evaluation already; {overrides[0]} comes too late")
        return read_results(path)
    if data is None:
        raise ConfigError(
            f"{path}: no evaluation (it has no {JSON_FILE}): make one with `vmp eval {path} DATA "
            "--out DIR`, or compare weights with --data DATA"
        )
    return evaluate_weights(path, data, overrides)


def refuse_unlike(first: Results, second: Results, names: tuple[str, str]) -> None:
    """Raise ConfigError unless both are of the same videos, classes and views."""
    a, b = first.evaluation, second.evaluation
    both = f"{names[0]} and {names[1]} cannot be compared"
    if a.data_digest != b.data_digest:
        raise ConfigError(
            f"{both}: they are of other videos ({a.data}, split {a.split}, digest "
            f"{a.data_digest[:12]}; {b.data}, split {b.split}, digest {b.data_digest[:12]})"
        )
    ours, theirs = a.views.model_dump(), b.views.model_dump()
    if not (a.views.shuffle_frames or b.views.shuffle_frames):
        ours["seed"] = theirs["seed"] = 0  # it orders frames that are shuffled, and nothing else
    different = [f"{key} {ours[key]} and {theirs[key]}" for key in ours if ours[key] != theirs[key]]
    if different:
        raise ConfigError(f"{both}: their views differ ({', '.join(different)})")
    if first.keys != second.keys:
        missing = len(set(first.keys) ^ set(second.keys))
        raise ConfigError(
            f"{both}: {missing} videos were read for one and not for the other; repair the data "
            "and evaluate again"
        )


def compare(first: Results, second: Results) -> dict[str, Any]:
    """Return the comparison as plain values; `refuse_unlike` has let both pass."""
    a, b = first.outcomes.top1, second.outcomes.top1
    test = mcnemar(a, b)
    interval = bootstrap_difference(a, b)
    return {
        "version": 1,
        "weights": [first.evaluation.weights, second.evaluation.weights],
        "data": first.evaluation.data,
        "split": first.evaluation.split,
        "data_digest": first.evaluation.data_digest,
        "num_videos": len(a),
        "top1": [first.evaluation.top1, second.evaluation.top1],
        "top1_intervals": [list(r.evaluation.top1_interval) for r in (first, second)],
        "difference": second.evaluation.top1 - first.evaluation.top1,
        "difference_interval": list(interval),
        "only_first_correct": test.only_first,
        "only_second_correct": test.only_second,
        "p_value": test.p_value,
        "test": _name(test),
    }


def _name(test: McNemar) -> str:
    kind = "exact binomial" if test.exact else "chi-squared, continuity corrected"
    return f"McNemar, {kind}"


def _print(found: dict[str, Any]) -> None:
    rows = [
        [name, f"{top1:.4f}", f"[{low:.4f}, {high:.4f}]", str(only), weights]
        for name, top1, (low, high), only, weights in zip(
            "AB",
            found["top1"],
            found["top1_intervals"],
            (found["only_first_correct"], found["only_second_correct"]),
            found["weights"],
            strict=True,
        )
    ]
    print_table(["", "top1", "95 %", "correct alone", "weights"], rows)
    low, high = found["difference_interval"]
    say(f"B - A      {found['difference']:+.4f}, 95 % [{low:+.4f}, {high:+.4f}]")
    say(f"p          {found['p_value']:.4g} ({found['test']}; {found['num_videos']} videos)")
    distinct = found["p_value"] < _SIGNIFICANT
    better = "B" if found["difference"] > 0 else "A"
    say(
        f"verdict    {better} is better (p < {_SIGNIFICANT})"
        if distinct
        else f"verdict    no difference that these videos show (p >= {_SIGNIFICANT})"
    )
