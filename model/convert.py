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
from model.containers import read_container
from model.errors import ModelConfigError, WeightsError
from model.key_report import KeyReport
from model.weights import save_model

_log = logging.getLogger(__name__)


def convert(
    src: str | Path,
    out: str | Path,
    config: str | ModelConfig | None = None,
    allow_lossy: bool = False,
    **overrides: Any,
) -> KeyReport:
    """Reads released weights, fits them to `config` (default: the shape they have) with `overrides`
    and writes a safetensors file that `load_model` opens. A head that must be fresh is drawn from
    seed 0.

    Raises WeightsError when the weights cannot be read, trusted or fitted, ModelConfigError.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, report = load_pretrained(src, config, allow_lossy=allow_lossy, **overrides)
    save_model(out, net)
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
    tensors, stored = read_container(Path(path))
    if config is None and stored is None:
        target = infer_config(tensors, Path(path), **overrides)
    else:
        base = config if config is not None else stored
        assert base is not None
        target = resolve_config(base, **overrides)
    return fit_model(tensors, target, Path(path), allow_lossy=allow_lossy)


def fit_model(
    tensors: dict[str, Tensor], config: ModelConfig, source: Path, *, allow_lossy: bool = False
) -> tuple[VideoMamba, KeyReport]:
    """A model of `config`, in evaluation mode, with the weights `tensors` adapted to it.

    Raises WeightsError, which names `source`, when they cannot be fitted.
    """
    with torch.device("meta"):  # takes no memory until the weights are known to fit
        shapes = {key: value.shape for key, value in VideoMamba(config).state_dict().items()}
    try:
        fitted, report = adapt_state_dict(tensors, shapes, config, allow_lossy)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from error
    net = VideoMamba(config)
    net.load_state_dict(net.state_dict() | fitted)
    return net.eval(), report


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
        raise WeightsError(f"{path}: has no classification head: give num_classes")
    try:
        shown = resolve_config(ModelConfig(), **fields)
    except ModelConfigError as error:
        raise WeightsError(f"{path}: its shapes describe no model: {error}") from error
    return resolve_config(shown, **overrides)
