"""Fits released VideoMamba / VideoMambaPro weights to a model of another shape.

It takes image weights to video and handles other resolutions and clip lengths, other heads,
masked-pretraining names and both parameter layouts. A KeyReport accounts for every tensor. A key
that is not understood is an error and is never skipped.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import ModelConfig
from model.containers import FOREIGN
from model.errors import WeightsError, brief
from model.key_report import KeyReport

# The masked-pretraining stage names the final norm differently.
_RENAMES = {"norm.weight": "norm_f.weight"}
# Only layout "separate" has these parameters; A_b_log exists in both layouts.
_OWN_BACKWARD = re.compile(r"^(layers\.\d+\.mixer\.)(conv1d|x_proj|dt_proj|D)_b(\..+)?$")
_SHARED = re.compile(r"^(layers\.\d+\.mixer\.)(conv1d|x_proj|dt_proj|D)(\..+)?$")
# Only direction "bidirectional" has this parameter.
_BACKWARD = re.compile(r"^(layers\.\d+\.mixer\.)A_b_log$")
# Kinetics-710 lists the 400 classes of Kinetics-400 first.
_K710, _K400 = 710, 400


def adapt_state_dict(
    source: dict[str, Tensor],
    shapes: dict[str, torch.Size],
    config: ModelConfig,
    allow_lossy: bool = False,
) -> tuple[dict[str, Tensor], KeyReport]:
    """Tensors of `source` made to fit `shapes`, the keys and shapes of a model of `config`.

    Keys absent from the result keep the model's initial value (reported as "initialised").
    Raises WeightsError for keys or shapes that cannot be fitted, and for weights of the other
    layout or direction unless allow_lossy: no such change keeps the function.
    """
    report = KeyReport()
    remaining = _rename(source, report)
    _to_layout(remaining, config, report, allow_lossy)
    _to_direction(remaining, config, report, allow_lossy)
    fitted: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        tensor = remaining.pop(key, None)
        if tensor is None:
            if key not in ("temporal_pos_embedding", "head.weight", "head.bias"):
                raise _mismatch(f"the file has no '{key}'", source, config)
            how = "zeros" if key == "temporal_pos_embedding" else "fresh head"
            report.add("initialised", None, key, how)
            continue
        result = _fit(key, tensor, shape, config, report)
        if result is not None:
            fitted[key] = result.float().contiguous()
    if remaining:
        raise _mismatch(f"the model has no {brief(next(iter(remaining)))}", source, config)
    return fitted, report


def _rename(source: dict[str, Tensor], report: KeyReport) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for key, tensor in source.items():
        if FOREIGN.match(key):
            report.add("dropped", key, None, "belongs to another training stage")
        elif key in _RENAMES and _RENAMES[key] not in source:
            report.add("renamed", key, _RENAMES[key])
            renamed[_RENAMES[key]] = tensor
        else:
            renamed[key] = tensor
    return renamed


def _to_layout(
    tensors: dict[str, Tensor], config: ModelConfig, report: KeyReport, allow_lossy: bool
) -> None:
    """Moves `tensors` in place to the parameter layout of `config`."""
    own_backward = [key for key in tensors if _OWN_BACKWARD.match(key)]
    stored = "separate" if own_backward else "shared"
    if stored == config.layout:
        return
    change = f"layout {stored} -> {config.layout}"
    if not allow_lossy:
        loss = (
            f"discards {len(own_backward)} tensors such as '{own_backward[0]}'"
            if own_backward
            else "changes the function: a separate backward convolution looks the other way"
        )
        raise WeightsError(
            f"the weights have layout '{stored}'; fitting them to layout '{config.layout}' {loss}: "
            f"set layout={stored}, or allow the loss explicitly"
        )
    for key in own_backward:
        del tensors[key]
        report.add("dropped", key, None, change)
    if stored == "shared":
        for key in list(tensors):
            if match := _SHARED.match(key):
                twin = f"{match[1]}{match[2]}_b{match[3] or ''}"
                tensors[twin] = tensors[key].clone()
                report.add("copied", key, twin, change)


def _to_direction(
    tensors: dict[str, Tensor], config: ModelConfig, report: KeyReport, allow_lossy: bool
) -> None:
    """Drops the backward scan from `tensors`, or gives them one, as the direction of `config` is.

    The other direction also has its CLS token elsewhere, so the weights are only a start.
    """
    backward = [key for key in tensors if _BACKWARD.match(key)]
    stored = "bidirectional" if backward else "forward"
    if stored == config.direction or not any(key.endswith("mixer.A_log") for key in tensors):
        return
    if not allow_lossy:
        raise WeightsError(
            f"the weights have direction '{stored}', the model '{config.direction}', which is "
            f"another function: set direction={stored}, or allow the loss explicitly"
        )
    change = f"direction {stored} -> {config.direction}"
    for key in backward:
        del tensors[key]
        report.add("dropped", key, None, change)
    if not backward:
        for key in [key for key in tensors if key.endswith("mixer.A_log")]:
            twin = key.removesuffix("A_log") + "A_b_log"
            tensors[twin] = tensors[key].clone()
            report.add("copied", key, twin, change)


def _fit(
    key: str, tensor: Tensor, shape: torch.Size, config: ModelConfig, report: KeyReport
) -> Tensor | None:
    """`tensor` in the given shape, or None when the model keeps its initial value."""
    if tensor.shape == shape:
        report.add("loaded", key, key)
        return tensor
    change = f"{tuple(tensor.shape)} -> {tuple(shape)}"
    if key.startswith("head."):
        rows = tensor.shape[0] if tensor.ndim else 0
        if (rows, shape[0]) == (_K710, _K400) and tensor.shape[1:] == shape[1:]:
            report.add("resized", key, key, f"{change}, Kinetics-400 rows of Kinetics-710")
            return tensor[:_K400]
        report.add("dropped", key, None, f"{rows}-way head")
        report.add("initialised", None, key, "fresh head")
        return None
    resized = None
    if key == "patch_embed.proj.weight":
        resized = _inflate(tensor, shape)
    elif key == "pos_embed" and tensor.ndim == 3 and tensor.shape[2] == shape[2]:
        resized = _resize_positions(tensor, shape[1])
    elif key == "temporal_pos_embedding" and tensor.ndim == 3 and tensor.shape[2] == shape[2]:
        resized = F.interpolate(
            tensor.float().transpose(1, 2), size=shape[1], mode="linear", align_corners=False
        ).transpose(1, 2)
    if resized is None or resized.shape != shape:
        raise WeightsError(
            f"'{key}' cannot be fitted: {change}; choose a model of the same embed_dim, "
            "patch_size, d_state and d_conv"
        )
    report.add("resized", key, key, change)
    return resized


def _inflate(weight: Tensor, shape: torch.Size) -> Tensor | None:
    """Image patch weights in the middle frame of the tubelet, zero in the others."""
    image = weight.unsqueeze(2) if weight.ndim == 4 else weight
    if image.ndim != 5 or image.shape[2] != 1:
        return None
    if (*image.shape[:2], *image.shape[3:]) != (*shape[:2], *shape[3:]):
        return None
    inflated = image.new_zeros(shape)
    inflated[:, :, shape[2] // 2] = image[:, :, 0]
    return inflated


def _resize_positions(embedding: Tensor, tokens: int) -> Tensor | None:
    """Bicubic resize of the square grid (1, 1 + side^2, d); the CLS position is kept."""
    old, new = _side(embedding.shape[1] - 1), _side(tokens - 1)
    if old is None or new is None or embedding.shape[0] != 1:
        return None
    embedding = embedding.float()
    cls, grid = embedding[:, :1], embedding[:, 1:].transpose(1, 2).reshape(1, -1, old, old)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([cls, grid.flatten(2).transpose(1, 2)], dim=1)


def _side(area: int) -> int | None:
    side = math.isqrt(max(area, 0))
    return side if side and side * side == area else None


def _mismatch(what: str, source: dict[str, Tensor], config: ModelConfig) -> WeightsError:
    blocks = {m[1] for key in source if (m := re.match(r"layers\.(\d+)\.", key))}
    return WeightsError(
        f"the weights do not fit the model: {what} (file: {len(blocks)} blocks, model: depth "
        f"{config.depth}, layout '{config.layout}')"
    )
