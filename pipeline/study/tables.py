"""The tables of a study in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from pipeline.study.design import Arm
from pipeline.study.statistics import Estimate
from pipeline.study.summary import Summary, left_plateau

_NONE = "-"


def tables(summary: Summary) -> dict[str, str]:
    """Name of a generated section of docs/science.md -> its Markdown."""
    return {
        "status": _status(summary),
        "combinations": _arms(summary, summary.design.arms),
        "effects": _effects(summary),
        "candidates": _arms(summary, _with_bases(summary)),
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


def _arms(summary: Summary, arms: Sequence[Arm]) -> str:
    lines = [
        "| data | model | parameters | lr, warm-up | top-1, % | runs | left the plateau at step "
        "| first gradient at the patches |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for data in summary.design.data:
        for arm in arms:
            runs = summary.seeds_of(data, arm)
            if not runs:
                continue
            settings, gradient = summary.settings(data, arm), summary.first_gradient(data, arm)
            assert settings is not None
            accuracy = summary.accuracy(data, arm)
            cells = [
                data,
                arm.name,
                f"{runs[0].parameters:,}",
                f"{settings.lr:g}, {settings.warmup:.0%}",
                _percent(accuracy),
                str(len(runs)),
                _plateau(summary, data, arm),
                _NONE if gradient is None else f"{gradient:.1e}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _plateau(summary: Summary, data: str, arm: Arm) -> str:
    steps = summary.left_plateau(data, arm)
    left = [step for step in steps if step is not None]
    if not left:
        return "never"
    shown = f"{median(left):.0f}"
    return shown if len(left) == len(steps) else f"{shown} ({len(left)} of {len(steps)})"


def _effects(summary: Summary) -> str:
    lines = [
        "| data | layout | change | effect on top-1, points | runs per combination |",
        "|---|---|---|---|---|",
    ]
    for effect in summary.effects():
        if effect.estimate is None:
            continue
        shown = effect.estimate.percent(signed=True)
        sure = "**" if effect.estimate.excludes_zero else ""
        lines.append(
            f"| {effect.data} | {effect.layout} | {effect.change} | {sure}{shown}{sure} "
            f"| {effect.estimate.count} |"
        )
    return "\n".join(lines)


def _with_bases(summary: Summary) -> list[Arm]:
    """Each candidate behind the published model from which it departs."""
    arms: list[Arm] = []
    for arm in summary.design.candidate_arms:
        base = arm.with_options()
        arms += [arm] if base in arms else [base, arm]
    return arms


def _nuisances(summary: Summary) -> str:
    lines = [
        "| model | backend, precision, engine | top-1, % | last loss | left the plateau at step |",
        "|---|---|---|---|---|",
    ]
    for result in summary.nuisances():
        assert result.test_top1 is not None
        left = left_plateau(result)
        lines.append(
            f"| {result.unit.arm.name} | {result.unit.nuisance.name} "
            f"| {100 * result.test_top1:.1f} | {result.losses[-1]:.4f} "
            f"| {'never' if left is None else left} |"
        )
    return "\n".join(lines)


def _percent(value: Estimate | None) -> str:
    return _NONE if value is None else value.percent()
