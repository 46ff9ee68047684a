"""The place of the class token among the patch tokens, and what the head reads.

With the direction "forward", each step in time has a class token of its own instead, behind it.

Legend: B batch, T steps in time, P patches per frame, L = T * P + 1 tokens, d embed_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import ModelConfig


def class_token_index(config: ModelConfig) -> int:
    """Position of the class token in the sequence, from 0 to L - 1."""
    before = {"first": 0, "middle": config.num_steps // 2, "last": config.num_steps}
    return before[config.class_token] * config.patches_per_frame


def join_tokens(cls: Tensor, tokens: Tensor, config: ModelConfig) -> Tensor:
    """cls (B, 1, d) and tokens (B, T * P, d) -> the sequence (B, L, d)."""
    index = class_token_index(config)
    if index == 0:  # a slice of all tokens would cost a copy of their gradient
        return torch.cat([cls, tokens], dim=1)
    return torch.cat([tokens[:, :index], cls, tokens[:, index:]], dim=1)


def class_token_first(tokens: Tensor, config: ModelConfig) -> Tensor:
    """The tokens (B, L, d) of the sequence, the (last) class token moved to the first place."""
    if config.direction == "forward":  # every step ends with a CLS token
        steps = tokens.reshape(len(tokens), config.num_steps, -1, tokens.shape[-1])
        return torch.cat([tokens[:, -1:], steps[:, :, :-1].flatten(1, 2)], dim=1)
    index = class_token_index(config)
    if index == 0:
        return tokens
    return torch.cat([tokens[:, index : index + 1], tokens[:, :index], tokens[:, index + 1 :]], 1)


def tokens_read(config: ModelConfig) -> slice:
    """The tokens that the final norm must see: the class token alone, or all of them."""
    if config.direction == "forward":  # the class token behind the last frame
        return slice(-1, None)
    if config.pooling == "mean":
        return slice(None)
    index = class_token_index(config)
    return slice(index, index + 1)
