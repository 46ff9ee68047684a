"""`vmp eval`, `compare`, `convert` and `export`: the options of what trained weights go through."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.arguments import Overrides, Raw, Weights
from pipeline.terminal import say


def eval_command(
    checkpoint: Weights,
    data: Annotated[Path, typer.Argument(help="Shard directory.")],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory for JSON, a table of predictions and pictures.")
    ] = None,
) -> None:
    """Evaluate weights: every sample once, with intervals, calibration and accuracy by class.

    Example: vmp eval runs/demo@best demo/shards --out demo/best eval.clips=2
    """
    from pipeline.commands.evaluate import run_eval

    run_eval(checkpoint, data, overrides or [], out)


def compare(
    first: Annotated[Path, typer.Argument(help="A directory of vmp eval --out, or weights.")],
    second: Annotated[Path, typer.Argument(help="The other one, of the same videos and views.")],
    overrides: Overrides = None,
    data: Annotated[
        Path | None, typer.Option(help="Shard directory on which to evaluate weights first.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write the comparison to.")] = None,
) -> None:
    """Test whether two sets of weights differ by more than chance on the same videos (McNemar).

    Example: vmp compare demo/best demo/last
    """
    from pipeline.commands.compare import run_compare

    run_compare(first, second, data, overrides or [], out)


def convert(
    source: Annotated[Path, typer.Argument(help="Released weights, .pth or .safetensors.")],
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    model: Annotated[str | None, typer.Option(help="Preset to fit; default: unchanged.")] = None,
    num_frames: Annotated[
        int | None, typer.Option(min=1, help="Frames per clip; default: unchanged.")
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Classes; a head of another size is initialised anew.")
    ] = None,
    allow_lossy: Annotated[
        bool,
        typer.Option("--allow-lossy", help="Merge two directions into one, which is not exact."),
    ] = False,
    ema: Annotated[
        bool, typer.Option("--ema", help="Read the moving average in a training checkpoint.")
    ] = False,
    keep_rest: Annotated[
        bool,
        typer.Option("--keep-rest", help="Keep other heads and teachers too, for --back."),
    ] = False,
    back: Annotated[
        bool, typer.Option("--back", help="Write the original of a converted file, bit for bit.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Print the logits of both files on a seeded input.")
    ] = False,
) -> None:
    """Convert released VideoMamba or VideoMambaPro weights to this project's format, or back.

    Example: vmp convert videomamba_m16_k400.pth m16.safetensors --verify
    """
    from pipeline.commands.convert import check_out, convert_back, convert_weights

    check_out(source, out)
    if back:
        sys.exit(convert_back(source, out))
    fields = {"num_frames": num_frames, "num_classes": num_classes}
    status = convert_weights(
        source,
        out,
        model,
        allow_lossy=allow_lossy,
        keep_rest=keep_rest,
        ema=ema,
        verify=verify,
        fields={key: value for key, value in fields.items() if value is not None},
    )
    if status:
        sys.exit(status)


def export(
    run: Weights,
    out: Annotated[
        Path, typer.Argument(help="The .safetensors, .pth, .pt2 or .onnx file, or a folder.")
    ],
    raw: Raw = False,
) -> None:
    """Write a trained model to one file with classes, sampling and model configuration.

    The suffix decides: .safetensors or .pth for weights, .pt2 for a program of torch.export, .onnx
    for ONNX, none for a folder in the form of the Hugging Face Hub.

    Example: vmp export runs/demo@best demo.onnx
    """
    from pipeline.inference.export import export_weights

    say(export_weights(run, out, raw=raw))
