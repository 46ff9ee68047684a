"""AdamW and its parameter groups."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import nn

from pipeline.training.config import OptimConfig

_EMBEDDINGS = ("pos_embed", "temporal_pos_embedding", "cls_token", "mask_token")
_PATCH_EMBEDDING = "patch_embed."
# The published assigner of layer numbers knows blocks by another model's name for them, and not
# the temporal embedding, so that both pass for the head: VideoMamba, video_sm/optim_factory.py.
_PUBLISHED_EMBEDDINGS = ("pos_embed", "cls_token", "mask_token")
_BLOCK = re.compile(r"layers\.(\d+)\.")


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    config: OptimConfig,
    *,
    no_weight_decay: Iterable[str],
    depth: int,
) -> list[dict[str, object]]:
    """Build the parameter groups for AdamW, each with `names`, `weight_decay` and `lr_scale`.

    Args:
        no_weight_decay: names of the parameters that the `corrected` profile does not decay.
        depth: number of blocks, from which `lr_scale` counts down.
    """
    undecayed = frozenset(no_weight_decay)
    groups: dict[tuple[float, float], dict[str, object]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        if config.profile == "corrected":
            decayed = name not in undecayed
        else:
            # The published code decays everything but vectors and the listed embeddings.
            decayed = parameter.ndim > 1 and name not in _EMBEDDINGS
        weight_decay = config.weight_decay if decayed else 0.0
        scale = lr_scale(name, config, depth)
        group = groups.setdefault(
            (weight_decay, scale),
            {"params": [], "names": [], "weight_decay": weight_decay, "lr_scale": scale},
        )
        group["params"].append(parameter)  # type: ignore[attr-defined]
        group["names"].append(name)  # type: ignore[attr-defined]
    return list(groups.values())


def lr_scale(name: str, config: OptimConfig, depth: int) -> float:
    """Return the factor on the learning rate of a parameter, see `OptimConfig.layer_decay`.

    Everything outside embeddings and blocks, such as a head or a decoder, has the factor 1.
    """
    block = _BLOCK.match(name)
    if config.profile == "parity":
        is_embedding, block = name in _PUBLISHED_EMBEDDINGS, None
    else:
        is_embedding = name in _EMBEDDINGS
    if is_embedding or name.startswith(_PATCH_EMBEDDING):
        return config.layer_decay ** (depth + 1)
    return 1.0 if block is None else config.layer_decay ** (depth - int(block[1]))


def build_adamw(
    groups: list[dict[str, object]], config: OptimConfig, device: torch.device
) -> torch.optim.AdamW:
    """Build torch's own AdamW; DeepSpeed's fused one would compile C++ for minutes on first use.

    The fused form, one kernel for all parameters, is used on CUDA only: on the CPU its results
    differ in the last bits.
    """
    fused = True if device.type == "cuda" else None
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)
