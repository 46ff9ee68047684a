"""`vmp eval`: the figures of one set of weights on one split, printed and written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.inference.evaluate import summarize
from pipeline.inference.evaluate_checkpoint import evaluate_weights
from pipeline.inference.results import JSON_FILE, Results, write_results
from pipeline.inference.statistics import Interval
from pipeline.terminal import one_line, say
from pipeline.training import distributed, ranks

_JOIN_S = 1800.0


def run_eval(weights: Path, data: Path, overrides: Sequence[str], out: Path | None) -> None:
    """Evaluate, print the figures and, with `out`, write table, pictures and JSON.

    Under torchrun or srun, the ranks share the videos and rank 0 prints and writes.
    """
    from slurm import ranks as slurm_ranks

    if out is not None:
        check_out(out)
    if not ranks.inside_launcher():
        os.environ.update(slurm_ranks.of_own_step())
    world = distributed.join(timeout_s=_JOIN_S) if ranks.inside_launcher() else None
    try:
        results = evaluate_weights(weights, data, overrides, world)
        if world is None or world.is_main:
            print_results(results)
            if out is not None:
                write_evaluation(out, results)
    finally:
        distributed.leave()


def check_out(out: Path) -> None:
    """Raise ConfigError, before an evaluation is spent on it, if `out` cannot be a directory."""
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ConfigError(f"--out {out}: {nearest} is not a directory that can be written")


def print_results(results: Results) -> None:
    evaluation, result = results.evaluation, summarize(results.outcomes)
    views = evaluation.views
    say(
        f"top1 {result.top1:.4f}  top5 {result.top5:.4f}  loss {result.loss:.4f}  "
        f"samples {result.num_samples}"
    )
    classes = evaluation.mean_class_accuracy
    mean = "" if classes is None else f"  mean class accuracy {classes:.4f}"
    interval = interval_text(evaluation.top1_interval)
    say(f"top1 95 % {interval}{mean}  calibration error {evaluation.calibration_error:.4f}")
    split = f"split {evaluation.split}"
    if evaluation.is_test:
        split += " (test data: report it, choose nothing by it)"
    seen = f"{views.clips} x {views.crops} views of {views.num_frames} frames"
    say(one_line(f"weights {evaluation.weights}  data {evaluation.data}, {split}, {seen}"))
    if evaluation.unreadable:
        shown = ", ".join(evaluation.unreadable[:3])
        say(f"not counted: {len(evaluation.unreadable)} unreadable videos ({shown} ...)", err=True)


def interval_text(interval: Interval) -> str:
    return f"[{interval.low:.4f}, {interval.high:.4f}]"


def write_evaluation(out: Path, results: Results) -> None:
    """Write everything to the directory `out`. Raises ConfigError when it cannot be written."""
    from pipeline.inference.plots import PICTURES, draw  # loads matplotlib

    write_results(out, results)
    draw(out, results)
    say(f"{out}: {JSON_FILE}, videos.parquet, {', '.join(PICTURES)}")
