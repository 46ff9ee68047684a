"""AdamW and its parameter groups."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from pipeline.training.config import OptimConfig

EMBEDDINGS = ("patch_embed.", "pos_embed", "temporal_pos_embedding", "cls_token")


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
        depth: number of blocks, which sets the embeddings' learning rate in the `parity` profile.
    """
    undecayed = frozenset(no_weight_decay)
    groups: dict[tuple[float, float], dict[str, object]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        lr_scale = 1.0
        if config.profile == "corrected":
            decayed = name not in undecayed
        else:
            # The published code decays everything but vectors and the listed embeddings.
            decayed = parameter.ndim > 1 and not name.startswith(EMBEDDINGS[1:])
            if name.startswith(EMBEDDINGS):
                lr_scale = config.layer_decay ** (depth + 1)
        weight_decay = config.weight_decay if decayed else 0.0
        group = groups.setdefault(
            (weight_decay, lr_scale),
            {"params": [], "names": [], "weight_decay": weight_decay, "lr_scale": lr_scale},
        )
        group["params"].append(parameter)  # type: ignore[attr-defined]
        group["names"].append(name)  # type: ignore[attr-defined]
    return list(groups.values())


def build_adamw(
    groups: list[dict[str, object]], config: OptimConfig, device: torch.device
) -> torch.optim.AdamW:
    """Build torch's own AdamW; DeepSpeed's fused one would compile C++ for minutes on first use.

    The fused form, one kernel for all parameters, is used on CUDA only: on the CPU its results
    differ in the last bits.
    """
    fused = True if device.type == "cuda" else None
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)
