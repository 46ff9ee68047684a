"""Finished runs of a row's recipes, and their accuracy beside the claims."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import rundir
from pipeline.config import RunConfig, read_config
from pipeline.errors import ConfigError
from pipeline.inference.statistics import Interval, wilson_of_share
from pipeline.reproduce.shards import dataset_of
from pipeline.rundir import State
from pipeline.rundir.summary import read_summary

# What a reproduction may differ in: its name, its seed, and where its weights and files lie.
_FREE = ("name", "seed", "deterministic", "init_from")
_Z = 1.959963984540054
"""Quantile of the normal distribution for an interval of 95 %."""


@dataclass(frozen=True)
class Result:
    """The result of a finished run."""

    run_dir: Path
    top1: float
    """Fraction of the videos that are classified correctly."""
    num_samples: int
    differs: tuple[str, ...]
    """Settings in which the run differs from the recipe; empty when it is a reproduction."""

    @property
    def interval(self) -> Interval:
        return wilson_of_share(self.top1, self.num_samples)


def results_of(runs_dir: Path, recipe: str, config: RunConfig) -> list[Result]:
    """Return the finished runs with the settings of `config`, and those that share only its name.

    A run of another name must also have a shard directory of the same name.
    Runs that cannot be read are left out. A directory that is missing has no runs.
    """
    wanted = _settings(config)
    found = []
    for run_dir in sorted(p.parent for p in runs_dir.glob(f"*/{rundir.CONFIG_FILE}")):
        summary = read_summary(run_dir)
        if rundir.read_status(run_dir).state is not State.FINISHED or summary is None:
            continue
        if not math.isfinite(summary.top1):  # pre-training without labels has no accuracy
            continue
        try:
            of_run = read_config(run_dir)
        except ConfigError:
            continue
        settings = _settings(of_run)
        keys = settings.keys() | wanted.keys()
        differs = sorted(key for key in keys if settings.get(key) != wanted.get(key))
        # Where shards lie is no setting, but folds differ in nothing else.
        if run_dir.name != recipe and dataset_of(of_run) != dataset_of(config):
            differs.append("data.train")
        if not differs or run_dir.name == recipe:
            found.append(Result(run_dir, summary.top1, summary.num_samples, tuple(differs)))
    return found


@dataclass(frozen=True)
class Estimate:
    """An accuracy with its interval of 95 %."""

    top1: float
    low: float
    high: float
    num_samples: int


def over_seeds(results: Sequence[Result]) -> Estimate:
    """Return the mean of runs that differ in their seed.

    They are evaluated on the same videos, so that the interval is that of one run.
    """
    mean = math.fsum(r.top1 for r in results) / len(results)
    return Estimate(mean, *wilson_of_share(mean, results[0].num_samples), results[0].num_samples)


def over_folds(folds: Sequence[Estimate]) -> Estimate:
    """Return the mean over folds, whose test videos differ, with its normal interval."""
    if len(folds) == 1:
        return folds[0]
    mean = math.fsum(f.top1 for f in folds) / len(folds)
    variance = math.fsum(f.top1 * (1 - f.top1) / max(f.num_samples, 1) for f in folds)
    half = _Z * math.sqrt(variance) / len(folds)
    return Estimate(mean, mean - half, mean + half, sum(f.num_samples for f in folds))


def _settings(config: RunConfig) -> dict[str, object]:
    return {key: value for key, value in config.identity().items() if key not in _FREE}
