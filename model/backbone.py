"""The video classifier: patch and position embeddings, blocks of mixers, a head.

The head reads the CLS token, or the mean of all tokens as an option.

Legend: B batch, T steps in time, P patches per frame, L tokens, d embed_dim. L is T * P + 1, or
T * (P + 1) for the direction "forward".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.block import Block, RMSNorm
from model.config import ModelConfig, resolve_config
from model.errors import ModelError
from model.init import init_weights
from model.mixer import Mixer
from model.patch_embed import PatchEmbed
from model.readout import class_token_first, join_tokens, tokens_read
from model.step_linear import linear

# Weight decay spares parameters whose last name is here, and those of the norms. Names decide, not
# shapes, because ZeRO-3 flattens parameters.
_UNDECAYED = {
    *("bias", "A_log", "A_b_log", "D", "D_b"),
    *("cls_token", "pos_embed", "temporal_pos_embedding"),
}


class VideoMamba(nn.Module):
    """VideoMamba or VideoMambaPro, as `config` says; state_dict keys are the published ones."""

    zero3_leaf_modules: tuple[type[nn.Module], ...] = (Mixer,)
    """Modules that read their children's weights, which ZeRO-3 must therefore gather as a whole.
    The patch embedding is not one of them: its input needs no gradient, so DeepSpeed would release
    the weights of such a leaf before their own gradient arrives."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.patches_per_frame + 1, dim))
        self.temporal_pos_embedding = nn.Parameter(torch.zeros(1, config.num_steps, dim))
        self.patch_embed = PatchEmbed(config)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm_f = RMSNorm(dim)
        self.is_causal = config.direction == "forward"
        rows = 1 if self.is_causal else None
        self.head = linear(dim, config.num_classes, rows=rows, bias=True)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        init_weights(self, config)

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """Rate of dropping each block's output, one per block; column order of drop_path_keep."""
        return self.config.drop_path_rates

    def forward(
        self, clip: Tensor, drop_path_keep: Tensor | None = None, every_step: bool = False
    ) -> Tensor:
        """Class logits of a batch of clips.

        clip: (B, 3, num_frames, img_size, img_size), normalised, floating point.
        drop_path_keep: (B, depth) bool, True keeps the output of that block for that sample,
            scaled by 1 / (1 - rate); without it the choice is drawn from torch's generator in
            training and everything is kept in evaluation.
        every_step: return the logits after every step in time, if the direction is "forward".
        Returns (B, num_classes), those after the last step for the direction "forward", or with
        `every_step` (B, T, num_classes). Raises ModelError for another shape.
        """
        if every_step and self.is_causal:
            self._check(clip, self.config.num_frames)
            return self.read_out(*self._blocks(self._embed(clip), drop_path_keep))
        logits: Tensor = self.head(self.features(clip, drop_path_keep))
        return logits

    def features(self, clip: Tensor, drop_path_keep: Tensor | None = None) -> Tensor:
        """What the head reads of each clip: (B, d), the normalised CLS token or mean of all tokens.

        Takes and raises what `forward` does.
        """
        self._check(clip, self.config.num_frames)
        branch, residual = self._blocks(self._embed(clip), drop_path_keep)
        # Add and normalise only the tokens that are read: one CLS token, or all tokens.
        read = tokens_read(self.config)
        normed, _ = self.norm_f(branch[:, read], residual[:, read])
        features: Tensor = normed.mean(dim=1)
        return features

    def tokens(self, clip: Tensor) -> Tensor:
        """The normalised tokens (B, T * P + 1, d) from which heads read, the CLS token first.

        clip: as `forward` takes it. Every block's output is kept. Of the CLS tokens of the
            direction "forward", only the last is returned.
        """
        self._check(clip, self.config.num_frames)
        normed, _ = self.norm_f(*self._blocks(self._embed(clip), None))
        return class_token_first(normed, self.config)

    def frame_logits(self, clip: Tensor) -> Tensor:
        """Class logits after every step in time, for the direction "forward".

        clip: (B, 3, frames, img_size, img_size) of any length that is a multiple of tubelet_size.
            Steps beyond the trained length have the temporal embedding of the last trained one.
        Returns (B, frames / tubelet_size, num_classes); step t depends on the frames up to it.
        Raises ModelError for another direction or shape.
        """
        if not self.is_causal:
            raise ModelError("logits of every frame need a model with direction=forward")
        frames = clip.shape[2] if clip.ndim == 5 else 0
        if frames == 0 or frames % self.config.tubelet_size:
            frames = self.config.num_frames
        self._check(clip, frames)
        return self.read_out(*self._blocks(self.embed_steps(clip, 0), None))

    def read_out(self, branch: Tensor, residual: Tensor) -> Tensor:
        """(B, T * (P + 1), d) behind the last block -> logits (B, T, num_classes)."""
        step = self.config.patches_per_frame + 1
        normed, _ = self.norm_f(branch[:, step - 1 :: step], residual[:, step - 1 :: step])
        logits: Tensor = self.head(normed)
        return logits

    def embed_steps(self, clip: Tensor, first: int) -> Tensor:
        """Tokens (B, n * (P + 1), d) of n steps in time, the first being number `first`.

        clip: (B, 3, n * tubelet_size, img_size, img_size).
        """
        patches = self.patch_embed(clip)
        steps = patches.shape[1]
        times = self.temporal_pos_embedding[:, first : first + steps]
        beyond = self.temporal_pos_embedding[:, -1:].expand(-1, steps - times.shape[1], -1)
        times = torch.cat([times, beyond], dim=1)[:, :, None]
        cls = (self.cls_token + self.pos_embed[:, :1])[:, None] + times
        patches = patches + (self.pos_embed[:, None, 1:] + times)
        return torch.cat([patches, cls.expand(clip.shape[0], -1, -1, -1)], dim=2).flatten(1, 2)

    def no_weight_decay(self) -> frozenset[str]:
        """Names of the parameters that weight decay must leave alone: biases, norms, the state
        matrices and skips of the scan, and the embeddings."""
        return frozenset(
            name
            for name, _ in self.named_parameters()
            if name.rpartition(".")[2] in _UNDECAYED or "norm" in name
        )

    def _check(self, clip: Tensor, frames: int) -> None:
        size = self.config.img_size
        expected = (3, frames, size, size)
        if clip.ndim != 5 or clip.shape[1:] != expected:
            raise ModelError(
                f"clip has shape {tuple(clip.shape)}, the model takes (batch, "
                f"{', '.join(map(str, expected))}): resize the clip or set "
                "num_frames / img_size of the model"
            )

    def _embed(self, clip: Tensor) -> Tensor:
        if self.is_causal:
            return self.embed_steps(clip, 0)
        positions = self.pos_embed[:, None, 1:] + self.temporal_pos_embedding[:, :, None]
        tokens = (self.patch_embed(clip) + positions).flatten(1, 2)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(clip.shape[0], -1, -1)
        return join_tokens(cls, tokens, self.config)

    def _blocks(self, tokens: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """The branch of the last block and the residual stream before it, both (B, L, d)."""
        branch = tokens
        residual: Tensor | None = None
        scales = self._branch_scales(tokens, keep)
        for index, block in enumerate(self.layers):
            scale = None if scales is None else scales[:, index, None, None]
            if self.training and self.config.recomputes(index):
                # No block draws random numbers, so there is no generator state to replay.
                branch, residual = checkpoint(
                    block, branch, residual, scale, use_reentrant=False, preserve_rng_state=False
                )
            else:
                branch, residual = block(branch, residual, scale)
        assert residual is not None  # depth >= 1
        return branch, residual

    def _branch_scales(self, clip: Tensor, keep: Tensor | None) -> Tensor | None:
        """(B, depth) factors of the branches; None when every factor is 1."""
        if keep is None and not (self.training and self.config.drop_path_rate > 0):
            return None
        # `drop_path_rates` is recomputed on the device, because a copy to it would wait for it.
        rate, depth = self.config.drop_path_rate, self.config.depth
        kept = 1 - torch.linspace(0, rate, depth, device=clip.device)
        if keep is None:
            keep = torch.rand(len(clip), depth, device=clip.device) < kept
        elif keep.shape != (len(clip), depth):
            raise ModelError(
                f"drop_path_keep has shape {tuple(keep.shape)}, "
                f"expected (batch, depth) = {(len(clip), depth)}"
            )
        return keep / kept


def create_model(preset: str | ModelConfig, **overrides: Any) -> VideoMamba:
    """A freshly initialised model of a preset or a config, with fields overridden.

    Example: create_model("videomambapro-m", num_frames=16, num_classes=400).
    Raises ModelConfigError for an unknown preset, field or value.
    """
    return VideoMamba(resolve_config(preset, **overrides))
