"""From a released checkpoint to a model: infer its shape, fit its tensors, report every key."""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.adapt import adapt_state_dict
from model.backbone import VideoMamba
from model.config import ModelConfig, resolve_config
from model.containers import Container, read_container
from model.errors import ModelConfigError, WeightsError
from model.key_report import KeyReport
from model.origin import ORIGIN_METADATA, refuse_unkeepable, trace
from model.weights import model_of, save_model

_log = logging.getLogger(__name__)


def convert(
    src: str | Path,
    out: str | Path,
    config: str | ModelConfig | None = None,
    allow_lossy: bool = False,
    *,
    keep_rest: bool = False,
    ema: bool = False,
    **overrides: Any,
) -> KeyReport:
    """Reads released weights, fits them to `config` (default: the shape they have) with `overrides`
    and writes a safetensors file that `load_model` opens. A head that must be fresh is drawn from
    seed 0.

    The file says how `model.origin.restore` gets the original back. With `keep_rest` it also keeps
    the tensors that the model does not use, without which there may be no way back. With `ema`,
    reads the moving average that a training checkpoint keeps beside its weights.
    Raises WeightsError when the weights cannot be read, trusted or fitted, ModelConfigError.
    """
    source = read_container(Path(src), ema=ema)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, report = fit_container(source, Path(src), config, allow_lossy, **overrides)
    origin, rest = trace(source, net.state_dict(), report)
    if keep_rest:
        refuse_unkeepable(rest, Path(src))
    save_model(
        out, net, {ORIGIN_METADATA: origin.model_dump_json()}, kept=rest if keep_rest else None
    )
    return report


def from_pretrained(
    path: str | Path,
    *,
    config: str | ModelConfig | None = None,
    allow_lossy: bool = False,
    **overrides: Any,
) -> VideoMamba:
    """A model with the weights of a checkpoint, adapted to `overrides`, in evaluation mode.

    Example: from_pretrained("videomamba_m16.pth", num_frames=16, num_classes=400,
    mask_backward=True, initial_state="first_token"). Without `config` the base is the file's own
    configuration or what its shapes say. The key report goes to the log.
    Raises WeightsError, ModelConfigError.
    """
    net, report = load_pretrained(path, config, allow_lossy=allow_lossy, **overrides)
    _log.info("weights of %s:\n%s", path, report)
    return net


def load_pretrained(
    path: str | Path,
    config: str | ModelConfig | None = None,
    *,
    allow_lossy: bool = False,
    **overrides: Any,
) -> tuple[VideoMamba, KeyReport]:
    """The model of `from_pretrained`, and the key report."""
    return fit_container(read_container(Path(path)), Path(path), config, allow_lossy, **overrides)


def fit_container(
    source: Container,
    path: Path,
    config: str | ModelConfig | None = None,
    allow_lossy: bool = False,
    **overrides: Any,
) -> tuple[VideoMamba, KeyReport]:
    """The model of `from_pretrained` from the content of `path`, and the key report."""
    base = config if config is not None else source.config
    if base is None:
        target = infer_config(source.tensors, path, **overrides)
    else:
        target = resolve_config(base, **overrides)
    return fit_model(source.tensors, target, path, allow_lossy=allow_lossy)


def open_whole(path: Path) -> tuple[VideoMamba, dict[str, str]]:
    """The model of a file as it stands, in evaluation mode, and the texts beside the weights.

    Nothing is resized or initialised anew, except that an image model has no temporal embedding.
    Raises WeightsError also for weights without a head.
    """
    source = read_container(path)
    if source.config is not None:
        return model_of(source, path), source.metadata
    net, report = fit_container(source, path)
    for entry in report.of("initialised"):
        if entry.target != "temporal_pos_embedding":
            raise WeightsError(f"{path}: has no '{entry.target}': train one with init_from={path}")
    return net, source.metadata


def fit_model(
    tensors: dict[str, Tensor], config: ModelConfig, source: Path, *, allow_lossy: bool = False
) -> tuple[VideoMamba, KeyReport]:
    """A model of `config`, in evaluation mode, with the weights `tensors` adapted to it.

    Raises WeightsError, which names `source`, when they cannot be fitted.
    """
    fitted, report = check_fit(tensors, config, source, allow_lossy=allow_lossy)
    net = VideoMamba(config)
    net.load_state_dict(net.state_dict() | fitted)
    return net.eval(), report


def check_fit(
    tensors: dict[str, Tensor], config: ModelConfig, source: Path, *, allow_lossy: bool = False
) -> tuple[dict[str, Tensor], KeyReport]:
    """`tensors` adapted to a model of `config`, which takes no memory before they fit.

    Raises WeightsError, which names `source`, when they cannot be fitted.
    """
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in VideoMamba(config).state_dict().items()}
    try:
        return adapt_state_dict(tensors, shapes, config, allow_lossy)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from error


def infer_config(tensors: dict[str, Tensor], path: Path, **overrides: Any) -> ModelConfig:
    """The configuration that the shapes of a bare state_dict imply.

    Options that leave no trace in the shapes follow the layout: separate weights are
    VideoMamba's (no mask, zero state), shared ones VideoMambaPro's. The authors' own
    VideoMambaPro weights need value="raw" besides.
    """
    try:
        patch = tensors["patch_embed.proj.weight"]
        dim, positions = tensors["cls_token"].shape[-1], tensors["pos_embed"].shape[1]
        inner, state = tensors["layers.0.mixer.A_log"].shape
        expand = inner // dim
        taps = tensors["layers.0.mixer.conv1d.weight"].shape[-1]
        tubelet = patch.shape[2] if patch.ndim == 5 else 1
        temporal = tensors.get("temporal_pos_embedding")
        steps = 1 if temporal is None else temporal.shape[1]
        side, patch_size = math.isqrt(positions - 1), patch.shape[-1]
        head = tensors.get("head.weight")
        classes = None if head is None else head.shape[0]
    except (KeyError, ValueError, IndexError, ArithmeticError) as error:
        raise WeightsError(f"{path}: not a VideoMamba state_dict ({error})") from error
    separate = "layers.0.mixer.conv1d_b.weight" in tensors
    backward = "layers.0.mixer.A_b_log" in tensors
    fields: dict[str, Any] = {
        "embed_dim": dim,
        "depth": len({m[1] for key in tensors if (m := re.match(r"layers\.(\d+)\.", key))}),
        "patch_size": patch_size,
        "img_size": side * patch_size,
        "tubelet_size": tubelet,
        "num_frames": tubelet * steps,
        "d_state": state,
        "d_conv": taps,
        "expand": expand,
        "layout": "separate" if separate else "shared",
        "direction": "bidirectional" if backward else "forward",
        "mask_backward": not separate,
        "initial_state": "zero" if separate else "first_token",
    }
    if classes is not None:
        fields["num_classes"] = classes
    elif "num_classes" not in overrides:
        raise WeightsError(
            f"{path}: has no classification head: give num_classes, or train one with init_from"
        )
    try:
        shown = resolve_config(ModelConfig(), **fields)
    except ModelConfigError as error:
        raise WeightsError(f"{path}: its shapes describe no model: {error}") from error
    return resolve_config(shown, **overrides)
