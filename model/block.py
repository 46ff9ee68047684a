"""One pre-norm residual block in add -> norm -> mixer form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.mixer import Mixer, MixerState
from model.scan import rms_norm_residual

NORM_EPS = 1e-5


class RMSNorm(nn.Module):
    """Adds the branch to the residual stream in fp32 and normalises the sum."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, branch: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """branch (B, L, d), residual fp32 (B, L, d) -> (normed (B, L, d), new residual)."""
        normed, residual = rms_norm_residual(branch, residual, self.weight, NORM_EPS)
        return normed, residual


class Block(nn.Module):
    """residual += branch; branch = mixer(norm(residual)) * branch_scale."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.embed_dim)
        self.mixer = Mixer(config)

    def forward(
        self, branch: Tensor, residual: Tensor | None, branch_scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """branch (B, L, d) of the previous block -> (own branch, residual before it).

        branch_scale (B, 1, 1): 0 drops this block for a sample, 1 / (1 - rate) keeps it.
        """
        normed, residual = self.norm(branch, residual)
        branch = self.mixer(normed)
        if branch_scale is not None:
            branch = branch * branch_scale.to(branch.dtype)
        return branch, residual

    def advance(
        self, branch: Tensor, residual: Tensor | None, state: MixerState | None
    ) -> tuple[Tensor, Tensor, MixerState]:
        """The block on the next tokens of a sequence: see `Mixer.advance`."""
        normed, residual = self.norm(branch, residual)
        branch, state = self.mixer.advance(normed, state)
        return branch, residual, state
