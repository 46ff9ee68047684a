"""A backbone without a classifier that sees a part of the tokens and predicts a teacher's.

Legend: B batch, V visible patches, T steps in time, P patches per frame, d embed_dim, w width of
the teacher's tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.backbone import VideoMamba
from model.config import ModelConfig
from model.errors import ModelError
from model.readout import class_token_index


class MaskedVideoMamba(VideoMamba):
    """VideoMamba for masked pre-training: `clip_decoder` takes the place of the head.

    The decoder is that of VideoMamba's pre-training: a fixed table of positions is added, then
    Linear and LayerNorm under the published name `clip_decoder.0`. Loading drops it.
    """

    def __init__(self, config: ModelConfig, width: int, *, before_last_mixer: bool = False) -> None:
        """`before_last_mixer` repeats an accident of the published code.

        It aligns the residual stream before the last mixer's output is added, so that the last
        block and the final norm get zero gradients.
        """
        if config.direction == "forward":
            raise ModelError("masked pre-training needs a model with direction=bidirectional")
        super().__init__(config)
        del self.head
        self.before_last_mixer = before_last_mixer
        linear = nn.Linear(config.embed_dim, width)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        decoder = nn.ModuleDict({"head": linear, "norm": nn.LayerNorm(width)})
        self.clip_decoder = nn.ModuleList([decoder])
        table = position_table(config.num_tokens, config.embed_dim)
        self.register_buffer("positions", table, persistent=False)

    def forward(  # type: ignore[override]
        self, clip: Tensor, drop_path_keep: Tensor | None = None, visible: Tensor | None = None
    ) -> Tensor:
        """Predicted tokens (B, 1 + V, w) of the CLS token and then of the visible patches.

        clip, drop_path_keep: as VideoMamba takes them.
        visible: (B, V) int64, rising numbers of patches, t * P + p; None = all.
        """
        if visible is None:
            visible = torch.arange(self.config.num_tokens - 1, device=clip.device)[None]
            visible = visible.expand(len(clip), -1)
        cls = class_token_index(self.config)
        # Places of the CLS token and of the visible patches in the sequence of all tokens.
        places = torch.cat([torch.full_like(visible[:, :1], cls), visible + (visible >= cls)], 1)
        in_sequence, order = places.sort(dim=1)
        self._check(clip, self.config.num_frames)
        branch, residual = self._blocks(gather(self._embed(clip), in_sequence), drop_path_keep)
        normed, _ = self.norm_f(branch, residual)
        # Every parameter takes part, because the engine expects a gradient of each.
        aligned = residual + 0 * normed if self.before_last_mixer else normed
        decoder: nn.ModuleDict = self.clip_decoder[0]  # type: ignore[assignment]
        cls_first = gather(aligned, order.argsort(dim=1))
        positions = self.get_buffer("positions")[places]
        predicted: Tensor = decoder["norm"](decoder["head"](cls_first + positions))
        return predicted


def select(tokens: Tensor, visible: Tensor) -> Tensor:
    """The visible patches, after the CLS token, of tokens (B, 1 + T * P, d): (B, 1 + V, d)."""
    return gather(tokens, torch.cat([torch.zeros_like(visible[:, :1]), visible + 1], dim=1))


def gather(tokens: Tensor, places: Tensor) -> Tensor:
    """The tokens (B, L, d) at places (B, n): (B, n, d)."""
    return tokens.gather(1, places[:, :, None].expand(-1, -1, tokens.shape[-1]))


def position_table(length: int, dim: int) -> Tensor:
    """Sines (even channels) and cosines (odd channels) of every position: (length, dim) float32.

    Source: "Attention Is All You Need" (arXiv 1706.03762), section 3.5.
    """
    channel = torch.arange(dim, dtype=torch.float64)
    angle = torch.arange(length, dtype=torch.float64)[:, None] / 10000 ** (2 * (channel // 2) / dim)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()
