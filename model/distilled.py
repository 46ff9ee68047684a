"""A classifier that also predicts the tokens of a teacher.

Legend: B batch, L tokens, d embed_dim, w width of the teacher's tokens.
"""

from __future__ import annotations

from torch import Tensor, nn

from model.backbone import VideoMamba
from model.block import NORM_EPS
from model.config import ModelConfig
from model.readout import class_token_first, tokens_read


class DistilledVideoMamba(VideoMamba):
    """VideoMamba with a projection of its tokens to the width of a teacher.

    The projection is that of VideoMamba's distillation, RMSNorm and Linear under the published name
    `distill_head`. A student as wide as its teacher has none. Loading drops it.
    """

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__(config)
        self.distill_head: nn.Module = nn.Identity()
        if width != config.embed_dim:
            linear = nn.Linear(config.embed_dim, width)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            self.distill_head = nn.Sequential(nn.RMSNorm(config.embed_dim, eps=NORM_EPS), linear)

    def forward(  # type: ignore[override]
        self, clip: Tensor, drop_path_keep: Tensor | None = None, features: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The logits (B, classes), and with `features` the projected tokens (B, L, w) as well, the
        CLS token first.

        clip, drop_path_keep: as VideoMamba takes them.
        """
        if not features:
            return super().forward(clip, drop_path_keep)
        self._check(clip, self.config.num_frames)
        tokens, _ = self.norm_f(*self._blocks(self._embed(clip), drop_path_keep))
        logits = self.head(tokens[:, tokens_read(self.config)].mean(dim=1))
        return logits, self.distill_head(class_token_first(tokens, self.config))

    def no_weight_decay(self) -> frozenset[str]:
        """As VideoMamba's, and the norm of the projection, whose published name does not say so."""
        norms = {name for name, _ in self.named_parameters() if name == "distill_head.0.weight"}
        return super().no_weight_decay() | norms
