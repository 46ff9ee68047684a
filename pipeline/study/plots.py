"""The figures of a study as SVG files. The same results give the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.study.design import Arm
from pipeline.study.summary import Summary

_COLOUR = {"shared": "tab:red", "separate": "tab:blue"}
_DASH = {"zero": (0, (3, 2)), "first_token": "solid"}
_MARKER = {False: "o", True: "s"}


def draw(summary: Summary, folder: Path) -> list[Path]:
    """Write study-accuracy.svg and study-signal.svg, and return their paths."""
    # A fixed salt and no date: an unchanged result leaves the committed file as it is.
    with mpl.rc_context({"svg.hashsalt": "study", "svg.fonttype": "none", "font.size": 8}):
        return [
            _save(_accuracy(summary), folder / "study-accuracy.svg"),
            _save(_signal(summary), folder / "study-signal.svg"),
        ]


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, format="svg", metadata={"Date": None})
    return path


def _accuracy(summary: Summary) -> Figure:
    """Test accuracy of every arm: mean, 95 % interval, and each run as a dot."""
    names = list(summary.design.data)
    arms = [*summary.design.arms, *summary.design.candidate_arms]
    figure = Figure(figsize=(5.0 * len(names), 1.2 + 0.22 * len(arms)), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for axis, data in zip(axes, names, strict=True):
        shown = [arm for arm in arms if summary.seeds_of(data, arm)]
        for row, arm in enumerate(shown):
            estimate = summary.accuracy(data, arm)
            assert estimate is not None
            colour = _COLOUR[arm.layout]
            runs = [100 * (run.test_top1 or 0.0) for run in summary.seeds_of(data, arm)]
            axis.plot(runs, [row] * len(runs), ".", color=colour, alpha=0.5)
            axis.errorbar(
                [100 * estimate.mean],
                [row],
                xerr=None if estimate.half is None else [100 * estimate.half],
                fmt=_MARKER[arm.mask],
                color=colour,
                capsize=3,
                markerfacecolor="white" if arm.start == "zero" else colour,
            )
        axis.set_yticks(range(len(shown)), [arm.name for arm in shown])
        axis.invert_yaxis()
        _chance(axis, summary, data)
        axis.set_xlim(0, 100)
        axis.set_xlabel("test top-1, %")
        axis.set_title(data)
        axis.grid(axis="x", alpha=0.3)
    return figure


def _chance(axis: Any, summary: Summary, data: str) -> None:
    classes = next((r.classes for r in summary.results if r.unit.data == data), None)
    if classes is not None:
        axis.axvline(100 / classes, color="grey", linestyle=":")


def _signal(summary: Summary) -> Figure:
    """Rows: data sets. Gradient at the patches, historical decay at the start, and at the end."""
    names = list(summary.design.data)
    figure = Figure(figsize=(14.0, 3.2 * len(names)), layout="constrained")
    rows = figure.subplots(len(names), 3, squeeze=False)
    for data, (along, first, last) in zip(names, rows, strict=True):
        for arm in _drawn(summary, data):
            style = _style(arm)
            steps, gradients = _along(summary, data, arm)
            along.plot(steps, gradients, **style)
            for axis, index in ((first, 0), (last, -1)):
                by_frame = summary.by_frame(data, arm, index)
                axis.plot(range(1, len(by_frame) + 1), by_frame, **style)
        along.set_xscale("symlog", linthresh=10)
        along.set_xlim(left=0)
        along.set_xlabel("optimizer step")
        along.set_title(f"{data}: gradient norm at the patch embedding")
        first.set_title("historical decay before training")
        last.set_title("historical decay after training")
        for axis in (along, first, last):
            axis.set_yscale("log")
            axis.grid(alpha=0.3)
        for axis in (first, last):
            axis.set_xlabel("frame")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return figure


def _drawn(summary: Summary, data: str) -> list[Arm]:
    """The eight combinations, and the candidates on the model without both changes."""
    candidates = [arm for arm in summary.design.candidate_arms if arm.start == "zero"]
    return [arm for arm in [*summary.design.arms, *candidates] if summary.seeds_of(data, arm)]


def _style(arm: Arm) -> dict[str, Any]:
    style: dict[str, Any] = {
        "label": arm.name,
        "color": _COLOUR[arm.layout],
        "linestyle": _DASH[arm.start],
        "marker": _MARKER[arm.mask],
        "markersize": 3,
        "linewidth": 1,
    }
    if arm.options:
        shades = {"class_token": "tab:green", "pooling": "tab:purple"}
        style["color"] = shades.get(arm.options[0][0], "tab:orange")
        if arm.options[0][1] == "middle":
            style["color"] = "yellowgreen"
    return style


def _along(summary: Summary, data: str, arm: Arm) -> tuple[Sequence[int], Sequence[float]]:
    """Steps, and the mean over runs of the patch gradient at each."""
    rows = [run.probes for run in summary.seeds_of(data, arm) if run.diverged_at is None]
    columns = list(zip(*rows, strict=True))
    steps = [column[0].step for column in columns]
    return steps, [sum(p.patch_gradient for p in column) / len(column) for column in columns]
