"""Clip to tokens: one linear map per tubelet x patch x patch block of pixels.

Legend: B batch, T steps in time, P patches per frame, d embed_dim.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig
from model.step_linear import linear_by_step


class PatchEmbed(nn.Module):
    """Non-overlapping 3-D patch embedding; parameters are those of a Conv3d named `proj`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.is_causal = config.direction == "forward"
        self.block = (config.tubelet_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(3, config.embed_dim, kernel_size=self.block, stride=self.block)

    def forward(self, clip: Tensor) -> Tensor:
        """clip (B, 3, frames, height, width), float -> tokens (B, T, P, d).

        Blocks do not overlap, so the convolution is one matrix product over flattened blocks. In
        this form the tokens come out contiguous and no strided Conv3d kernel is needed.
        """
        batch, channels, frames, height, width = clip.shape
        tubelet, patch, _ = self.block
        steps, rows, columns = frames // tubelet, height // patch, width // patch
        blocks = clip.reshape(batch, channels, steps, tubelet, rows, patch, columns, patch)
        blocks = blocks.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, steps, rows * columns, -1)
        weight, bias = self.proj.weight.flatten(1), self.proj.bias
        if self.is_causal:
            return linear_by_step(blocks, weight, bias, rows * columns)
        return F.linear(blocks, weight, bias)
