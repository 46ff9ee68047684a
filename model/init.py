"""Initial weights of a VideoMamba-family model.

Source: Mamba (arXiv 2312.00752) section 3.6 for A, D and the step size; VideoMamba for the rest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.mixer import Mixer

DT_RANGES = {"published": (1e-3, 0.1), "large": (1e-2, 1.0)}
DT_FLOOR = 1e-4
LINEAR_STD = 0.02


def init_weights(net: nn.Module, config: ModelConfig) -> None:
    """Draws every parameter of `net` in place from torch's global generator.

    Linear: trunc-normal 0.02; convolutions and norms: torch's own; CLS and temporal embedding: 0.
    """
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=LINEAR_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    # The second pass overwrites the mixer's layers that differ from the rule above.
    for module in net.modules():
        if isinstance(module, Mixer):
            _init_mixer(module, config)


def _init_mixer(mixer: Mixer, config: ModelConfig) -> None:
    ladder = torch.arange(1, config.d_state + 1, dtype=torch.float32).log()
    shared = config.layout == "shared"
    with torch.no_grad():
        mixer.A_log.copy_(ladder.expand_as(mixer.A_log))
        if mixer.A_b_log is not None:
            mixer.A_b_log.copy_(ladder.expand_as(mixer.A_b_log))
        for skip in [mixer.D] if shared else [mixer.D, mixer.D_b]:
            nn.init.ones_(skip)
        for dt_proj in [mixer.dt_proj] if shared else [mixer.dt_proj, mixer.dt_proj_b]:
            bound = config.dt_rank**-0.5
            nn.init.uniform_(dt_proj.weight, -bound, bound)
            dt_proj.bias.copy_(_step_size_bias(dt_proj.bias, *DT_RANGES[config.delta_init]))
        if config.bc_init == "fan_in":
            for x_proj in [mixer.x_proj] if shared else [mixer.x_proj, mixer.x_proj_b]:
                x_proj.weight[config.dt_rank :].mul_(config.inner_dim**-0.5 / LINEAR_STD)
        # Each block adds a branch to the stream, whose variance this keeps independent of depth.
        nn.init.kaiming_uniform_(mixer.out_proj.weight, a=math.sqrt(5))
        mixer.out_proj.weight.div_(math.sqrt(config.depth))


def _step_size_bias(like: Tensor, smallest: float, largest: float) -> Tensor:
    """b with softplus(b) log-uniform in [smallest, largest], floored at DT_FLOOR."""
    span = math.log(largest) - math.log(smallest)
    step = torch.exp(torch.rand_like(like) * span + math.log(smallest)).clamp(min=DT_FLOOR)
    return step + torch.log(-torch.expm1(-step))
