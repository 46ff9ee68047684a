"""Pictures of an evaluation, drawn without a display: calibration, confusion, classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pipeline.inference.results import Results
from pipeline.inference.statistics import per_class_accuracy

PICTURES = ("calibration.png", "confusion.png", "classes.png")
_MOST_NAMES = 40
_LONGEST_NAME = 26
_SMALL = 8
_INK, _FILL, _LINE = "#1f3a5f", "#5b8db8", "#b0b0b0"


def draw(out: Path, results: Results) -> None:
    """Draw the three pictures into the directory `out`."""
    for name, make in zip(PICTURES, (_calibration, _confusion, _classes), strict=True):
        # Without the version of the program, equal results are equal files.
        make(results).savefig(out / name, dpi=120, metadata={"Software": None})


def _calibration(results: Results) -> Figure:
    """Accuracy over confidence, and below it how many videos have that confidence."""
    evaluation = results.evaluation
    bins = [b for b in evaluation.calibration if b.videos]
    figure = Figure(figsize=(5, 5.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color=_LINE, linestyle="--", label="perfectly calibrated")
    upper.plot([b.confidence for b in bins], [b.accuracy for b in bins], "o-", color=_INK)
    upper.set(ylabel="accuracy", ylim=(0, 1.02), xlim=(0, 1))
    upper.set_title(f"calibration: expected error {evaluation.calibration_error:.3f}")
    upper.legend(loc="upper left", frameon=False)
    lower.bar(
        [(b.low + b.high) / 2 for b in bins],
        [b.videos for b in bins],
        width=[0.9 * (b.high - b.low) for b in bins],
        color=_FILL,
    )
    lower.set(xlabel="confidence (highest class probability)", ylabel="videos")
    return figure


def _confusion(results: Results) -> Figure:
    """Share of each class's videos (row) that get each prediction (column).

    Of many classes, only those with the most errors are shown.
    """
    classes, matrix = results.evaluation.classes, results.confusion
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    errors = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
    shown = np.sort(np.argsort(-errors, kind="stable")[:_MOST_NAMES])
    side = 0.22 * len(shown) + 3.5
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        shares[np.ix_(shown, shown)], cmap="Blues", vmin=0, vmax=1, interpolation="nearest"
    )
    figure.colorbar(image, ax=axes, label="share of the class's videos", shrink=0.8)
    names = [_short(classes[number]) for number in shown]
    axes.set_xticks(range(len(shown)), names, rotation=90, fontsize=_SMALL)
    axes.set_yticks(range(len(shown)), names, fontsize=_SMALL)
    axes.set(xlabel="prediction", ylabel="label")
    few = len(shown) == len(classes)
    which = "" if few else f", the {len(shown)} of {len(classes)} classes with most errors"
    axes.set_title(f"confusion{which}", fontsize=10)
    return figure


def _classes(results: Results) -> Figure:
    """Accuracy of every class that has videos, sorted; the line is that of all videos."""
    evaluation = results.evaluation
    accuracy = per_class_accuracy(results.confusion)
    order = np.argsort(accuracy, kind="stable")[: np.count_nonzero(~np.isnan(accuracy))]
    places, values = np.arange(len(order)), accuracy[order]
    if len(order) <= _MOST_NAMES:
        figure = Figure(figsize=(6, 0.24 * len(order) + 1.5), layout="constrained")
        axes = figure.subplots()
        axes.barh(places, values, color=_FILL)
        axes.axvline(evaluation.top1, color=_INK, linestyle="--")
        names = [_short(evaluation.classes[number]) for number in order]
        axes.set_yticks(places, names, fontsize=_SMALL)
        axes.set(xlabel="accuracy", xlim=(0, 1))
    else:
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        axes.bar(places, values, width=1.0, color=_FILL)
        axes.axhline(evaluation.top1, color=_INK, linestyle="--")
        axes.set(xlabel="classes, by accuracy", ylabel="accuracy", ylim=(0, 1))
        axes.margins(x=0)
    axes.set_title(
        f"accuracy of each class; all videos {evaluation.top1:.1%} (dashed)", fontsize=10
    )
    return figure


def _short(name: str) -> str:
    # A dollar sign would begin a formula.
    text = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    return text.replace("$", r"\$")
