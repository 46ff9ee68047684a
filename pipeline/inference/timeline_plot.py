"""A picture of how a model's answer changes over the time of a video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from pipeline.errors import ConfigError
from pipeline.inference.timeline import Curves

SUFFIXES = (".png", ".pdf", ".svg")
_MAX_CLASSES = 8
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#cc7733", "#332288")
_OTHERS = "#bbbbbb"


def check_plot(path: Path) -> None:
    """Raise ConfigError if a plot could not be written to `path`."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: cannot be drawn; choose {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: {path.parent} is not a directory")


def draw_timeline(path: Path, curves: Curves, classes: tuple[str, ...], title: str) -> None:
    """Draw the probabilities of the classes that lead most of the time, and who leads when.

    Raises ConfigError when the file cannot be written.
    """
    starts, ends, shares = curves.points()
    leader = shares.argmax(axis=1)
    # Classes that lead longest come first; among those that never lead, the most probable ones.
    led = np.bincount(leader, weights=ends - starts, minlength=len(classes))
    order = np.lexsort((-shares.mean(axis=0), -led))[: min(_MAX_CLASSES, len(classes))]
    shown = [index for index in order if led[index] > 0 or shares[:, index].max() > 0.1]
    colour = {index: _COLOURS[rank] for rank, index in enumerate(shown)}

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[6, 1])
    middles = (starts + ends) / 2
    for index in shown:
        # Plain text: a label may hold the dollar signs of formulas.
        label = classes[index].replace("$", r"\$")
        marker = "." if len(middles) < 60 else None
        above.plot(middles, shares[:, index], color=colour[index], label=label, marker=marker)
    above.set_ylim(-0.02, 1.02)
    above.set_ylabel("probability")
    above.grid(alpha=0.3)
    above.set_title(title.replace("$", r"\$"), loc="left", fontsize="medium")
    above.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    # Windows overlap, so each has the stretch around its middle.
    edges = np.concatenate([starts[:1], (middles[1:] + middles[:-1]) / 2, ends[-1:]])
    below.bar(
        edges[:-1],
        1.0,
        width=np.diff(edges),
        align="edge",
        color=[colour.get(index, _OTHERS) for index in leader],
    )
    below.set_yticks([])
    below.set_ylabel("leads", rotation=0, ha="right", va="center")
    below.set_xlim(edges[0], edges[-1])
    below.set_xlabel("time in the video")
    below.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: clock(seconds)))
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error


def clock(seconds: float) -> str:
    """Minutes and seconds with a tenth, as 1:02.5, or hours too, as 1:01:02.5."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    head = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    return f"{head}:{rest // 10:02}.{rest % 10}"
