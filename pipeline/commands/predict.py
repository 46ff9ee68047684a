"""`vmp predict`: the options; `predictions` does the work, and needs torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def predict(
    checkpoint: Annotated[
        Path, typer.Argument(help="A run directory, a checkpoint, or an exported file.")
    ],
    videos: Annotated[
        list[str], typer.Argument(help="Video files, folders, patterns, or URLs of them.")
    ],
    top: Annotated[int, typer.Option(min=1, help="Classes to show.")] = 5,
    window: Annotated[
        float | None, typer.Option(min=0.01, help="Classify windows of this many seconds.")
    ] = None,
    stride: Annotated[
        float | None,
        typer.Option(min=0.01, help="Seconds between starts of windows; default: half a window."),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Classify after each frame (model.direction=forward).")
    ] = False,
    every: Annotated[
        int | None, typer.Option(min=1, help="Take every N-th frame; default: as in training.")
    ] = None,
    carry: Annotated[
        bool, typer.Option("--carry", help="Answer from all frames so far, not from recent ones.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object per line.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a CSV row per class.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the timeline of a video: .png, .pdf or .svg.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Write what the model's head reads, as .parquet.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Use the last weights, not their moving average (ema).")
    ] = False,
) -> None:
    """Classify videos, or parts of them. The exit status is 2 when some could not be read.

    Example: vmp predict runs/demo demo/videos/val/000000.mp4 --window 2 --stride 1 --plot out.png
    """
    from pipeline.commands.predictions import Request, predict_videos
    from pipeline.errors import ConfigError

    if as_json and as_csv:
        raise ConfigError("--json and --csv: choose one")
    request = Request(
        top=top,
        window_s=window,
        stride_s=stride,
        stream=stream,
        every=every,
        carry=carry,
        output="json" if as_json else "csv" if as_csv else "text",
        plot=plot,
        features=features,
    )
    sys.exit(predict_videos(checkpoint, videos, request, raw=raw))
