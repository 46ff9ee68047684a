"""The tables of a study in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from pipeline.inference.statistics import wilson_of_share
from pipeline.study.design import Arm
from pipeline.study.statistics import Estimate
from pipeline.study.summary import Summary, left_plateau
from pipeline.study.train import Result

_NONE = "-"


def tables(summary: Summary) -> dict[str, str]:
    """Name of a generated section of docs/science.md -> its Markdown."""
    return {
        "status": _status(summary),
        "combinations": _arms(summary, summary.design.arms),
        "effects": _effects(summary),
        "candidates": _arms(summary, summary.design.candidate_arms, with_bases=True),
        "nuisances": _nuisances(summary),
    }


def _status(summary: Summary) -> str:
    design, (done, total) = summary.design, summary.finished()
    hosts = {tuple(sorted(result.host.items())) for result in summary.results}
    lines = [
        f"{done} of {total} units have finished; "
        f"{sum(result.cpu_s for result in summary.results) / 3600:.1f} hours of CPU.",
        "",
        "| data | steps | combinations: runs per combination | candidates: runs per candidate |",
        "|---|---|---|---|",
    ]
    for name, data in design.data.items():
        counts = [
            _range([len(summary.seeds_of(name, arm)) for arm in arms])
            for arms in (design.arms, design.candidate_arms)
        ]
        lines.append(f"| {name} | {data.steps} | {counts[0]} | {counts[1]} |")
    lines += ["", *(_host_line(dict(host)) for host in sorted(hosts))]
    return "\n".join(lines)


def _host_line(host: dict[str, str]) -> str:
    return f"- {host['processor']}, one core; torch {host['torch']}; commit {host['commit']}"


def _range(counts: Sequence[int]) -> str:
    if not counts:
        return _NONE
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _arms(summary: Summary, arms: Sequence[Arm], *, with_bases: bool = False) -> str:
    """A row per arm that has runs.

    Args:
        with_bases: put each candidate behind the published model from which it departs, and show
            its difference from it, paired by seed.
    """
    header = ["data", "model", "parameters", "lr, warm-up", "top-1, %", "runs, %"]
    header += ["less the published model, points"] if with_bases else []
    header += ["left the plateau at step", "first gradient at the patches"]
    rows = []
    for data in summary.design.data:
        for arm in _behind_bases(arms) if with_bases else arms:
            runs = summary.seeds_of(data, arm)
            if not runs:
                continue
            settings, gradient = runs[0].settings, summary.first_gradient(data, arm)
            row = [data, arm.name, f"{runs[0].parameters:,}"]
            row += [f"{settings.lr:g}, {settings.warmup:.0%}"]
            row += [_percent(summary.accuracy(data, arm)), _each(runs)]
            if with_bases:
                base = summary.difference(data, arm, arm.with_options())
                row += [_points(base) if arm.options else _NONE]
            row += [_plateau(summary, data, arm)]
            row += [_NONE if gradient is None else f"{gradient:.1e}"]
            rows.append(row)
    return _table(header, rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def _plateau(summary: Summary, data: str, arm: Arm) -> str:
    steps = summary.left_plateau(data, arm)
    left = [step for step in steps if step is not None]
    if not left:
        return "never"
    shown = f"{median(left):.0f}"
    return shown if len(left) == len(steps) else f"{shown} ({len(left)} of {len(steps)})"


def _effects(summary: Summary) -> str:
    """Effects within a layout, and the published model less VideoMamba; bold where sure."""
    header = ["data", "layout", "change", "effect on top-1, points", "runs per combination"]
    rows = [
        [
            effect.data,
            effect.layout,
            effect.change,
            _points(effect.estimate),
            _count(effect.estimate),
        ]
        for effect in summary.effects()
        if effect.estimate is not None
    ]
    pro = Arm(layout="shared", start="first_token", mask=True)
    plain = Arm(layout="separate", start="zero", mask=False)
    for data in summary.design.data:
        difference = summary.difference(data, pro, plain)
        if difference is not None:
            change = f"{pro.name} less {plain.name}"
            rows.append([data, "-", change, _points(difference), _count(difference)])
    return _table(header, rows)


def _behind_bases(arms: Sequence[Arm]) -> list[Arm]:
    """Each candidate behind the published model from which it departs."""
    ordered: list[Arm] = []
    for arm in arms:
        base = arm.with_options()
        ordered += [arm] if base in ordered else [base, arm]
    return ordered


def _nuisances(summary: Summary) -> str:
    header = ["model", "backend, precision, engine", "top-1, % (95 % over clips)", "last loss"]
    header += ["left the plateau at step"]
    rows = []
    for result in summary.nuisances():
        assert result.test_top1 is not None
        low, high = wilson_of_share(result.test_top1, result.test_clips)
        left = left_plateau(result)
        rows.append(
            [
                result.unit.arm.name,
                result.unit.nuisance.name,
                f"{100 * result.test_top1:.1f} ({100 * low:.1f} to {100 * high:.1f})",
                f"{result.losses[-1]:.4f}" if result.losses else _NONE,
                "never" if left is None else str(left),
            ]
        )
    return _table(header, rows)


def _each(runs: Sequence[Result]) -> str:
    """Accuracy of every run in the order of the seeds."""
    return ", ".join(f"{100 * (run.test_top1 or 0.0):.1f}" for run in runs)


def _percent(value: Estimate | None) -> str:
    return _NONE if value is None else value.percent()


def _points(value: Estimate | None) -> str:
    if value is None:
        return _NONE
    shown = value.percent(signed=True)
    return f"**{shown}**" if value.excludes_zero else shown


def _count(value: Estimate | None) -> str:
    return _NONE if value is None else str(value.runs)
