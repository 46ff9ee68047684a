"""`vmp convert`: released weights to this project's files, and back, with a proof on one input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model import VideoMamba, load_model
from model.containers import read_container
from model.convert import convert, fit_container
from model.errors import WeightsError
from model.origin import restore
from pipeline import exits
from pipeline.terminal import say

_SHOWN = 6


def convert_weights(
    source: Path,
    out: Path,
    model: str | None,
    *,
    allow_lossy: bool,
    keep_rest: bool,
    ema: bool,
    verify: bool,
    fields: dict[str, Any],
) -> int:
    """Convert, print the key report and, with `verify`, the logits; return the exit status.

    Raises WeightsError or ModelConfigError.
    """
    say(convert(source, out, model, allow_lossy, keep_rest=keep_rest, ema=ema, **fields))
    return print_logits(source, out, ema=ema, fields=fields) if verify else exits.DONE


def convert_back(source: Path, out: Path) -> int:
    """Write the original of a converted file. Raises WeightsError."""
    say(f"{out}: {restore(source, out)} tensors, each as in the file that was converted")
    return exits.DONE


def print_logits(source: Path, out: Path, *, ema: bool, fields: dict[str, Any]) -> int:
    """Print the logits of both files on a seeded input and whether they are equal.

    Returns 1 if they differ although both files describe the same model.
    """
    container = read_container(source, ema=ema)
    headless = container.config is None and "head.weight" not in container.tensors
    given = {key: fields[key] for key in ("num_classes",) if headless and key in fields}
    # `convert` draws a head that must be fresh from the same seed.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        original, _ = fit_container(container, source, **given)
    converted = load_model(out)
    if difference := _another_input(original, converted):
        say(f"logits are not comparable: {difference}")
        return exits.DONE
    clip = _clip(original)
    say(f"input      randn{tuple(clip.shape)}, seed 0")
    with torch.no_grad():
        first, second = original(clip)[0], converted(clip)[0]
    say(f"source     {_shown(first)}")
    say(f"converted  {_shown(second)}")
    if torch.equal(first, second):
        say("equal      yes, bit for bit")
        return exits.DONE
    if first.shape != second.shape:
        say(f"equal      no: {len(first)} classes became {len(second)}")
        return exits.DONE
    say(f"equal      no: they differ by up to {float((first - second).abs().max()):.3g}")
    return exits.DONE if original.config != converted.config else exits.FAILED


def _another_input(original: VideoMamba, converted: VideoMamba) -> str:
    """Why the two models cannot see the same input, or an empty string."""
    for field in ("num_frames", "img_size"):
        before, after = getattr(original.config, field), getattr(converted.config, field)
        if before != after:
            return f"{field} was {before} and is {after}"
    return ""


def _clip(net: VideoMamba) -> Tensor:
    config = net.config
    shape = (1, 3, config.num_frames, config.img_size, config.img_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _shown(logits: Tensor) -> str:
    first = " ".join(f"{value:+.6f}" for value in logits[:_SHOWN].tolist())
    return f"{first}{' ...' if len(logits) > _SHOWN else ''} ({len(logits)} logits)"


def check_out(source: Path, out: Path) -> None:
    """Raise WeightsError if `out` is the source itself, which a failure could destroy."""
    if out.exists() and source.exists() and out.samefile(source):
        raise WeightsError(f"{out}: is the file to convert; choose another name for the result")
