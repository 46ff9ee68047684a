"""Shape and options of a VideoMamba-family model, and the named presets. Imports no torch."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from model.errors import ModelConfigError
from model.invalid import did_you_mean, first_problem
from model.operational import OPERATIONAL

ScanBackend = Literal["auto", "reference", "chunked", "cpu", "cuda", "mamba_ssm"]


class ModelConfig(BaseModel):
    """Everything that decides a model's parameters and its function.

    The defaults are VideoMambaPro-M on 8 frames with the Kinetics-400 head. The upper limits are
    far above any model that is trained: a file that asks for more is damaged or hostile.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    embed_dim: int = Field(default=576, gt=0, le=2**16)
    """Width d of the residual stream."""
    depth: int = Field(default=32, gt=0, le=2**10)
    """Number of blocks."""
    img_size: int = Field(default=224, gt=0, le=2**13)
    """Height and width of a frame in pixels; a multiple of patch_size."""
    patch_size: int = Field(default=16, gt=0, le=2**13)
    """Height and width of a patch in pixels."""
    tubelet_size: int = Field(default=1, gt=0, le=2**16)
    """Frames per patch."""
    num_frames: int = Field(default=8, gt=0, le=2**16)
    """Frames per clip; a multiple of tubelet_size."""
    num_classes: int = Field(default=400, gt=0, le=10**6)
    """Rows of the classification head."""
    d_state: int = Field(default=16, gt=0, le=2**10)
    """State size N of the selective scan."""
    d_conv: int = Field(default=4, gt=0, le=2**10)
    """Taps of the causal depthwise convolution."""
    expand: int = Field(default=2, gt=0, le=2**6)
    """Inner width D = expand * embed_dim."""
    direction: Literal["bidirectional", "forward"] = "bidirectional"
    """bidirectional: every token sees the whole clip, behind one CLS token (the published models);
    forward: a token sees earlier ones only and a CLS token ends each step in time, so that
    `Stream` can go on with a video without end. It has no backward weights, needs layout shared
    and does not read mask_backward."""
    layout: Literal["shared", "separate"] = "shared"
    """shared: both directions use one conv1d, x_proj, dt_proj and D (VideoMambaPro);
    separate: the backward direction has its own (VideoMamba and its released weights)."""
    mask_backward: bool = True
    """Take the current token out of the backward direction's read-out."""
    initial_state: Literal["first_token", "zero"] = "first_token"
    """State before the first scanned token: that token's value (elemental residual) or zero."""
    value: Literal["conv", "raw"] = "conv"
    """What is scanned: the convolved tokens, or the raw ones as in the authors' published code.
    Only their own weights need raw."""
    class_token: Literal["first", "middle", "last"] = "first"
    """Place of the class token: before the first frame, as published, between the two halves of the
    frames, or after the last. Only first is published; docs/science.md compares them."""
    pooling: Literal["class_token", "mean"] = "class_token"
    """What the head reads: the class token, as published, or the mean of all tokens."""
    bc_init: Literal["published", "fan_in"] = "published"
    """Initial rows of x_proj that make B and C: standard deviation 0.02 at any width, as published,
    or inner_dim ** -0.5, which keeps their size when the width changes."""
    delta_init: Literal["published", "large"] = "published"
    """Initial step sizes: log-uniform from 0.001 to 0.1, as published, or from 0.01 to 1."""
    drop_path_rate: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Stochastic depth rate of the last block; earlier blocks rise linearly from 0."""
    scan_backend: Annotated[ScanBackend, OPERATIONAL] = "auto"
    """Implementation of the selective scan; auto takes the fastest that runs here."""
    activation_checkpointing: Annotated[Literal["none", "full"] | PositiveInt, OPERATIONAL] = "none"
    """Blocks recomputed in backward: none, full (each), or n (every n-th)."""

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        if self.img_size % self.patch_size:
            raise ValueError(
                f"img_size {self.img_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.num_frames % self.tubelet_size:
            raise ValueError(
                f"num_frames {self.num_frames} is not a multiple of "
                f"tubelet_size {self.tubelet_size}"
            )
        if self.direction == "forward" and self.layout == "separate":
            raise ValueError(
                "direction forward has no backward weights for layout separate: set layout=shared"
            )
        if self.direction == "forward" and (self.class_token, self.pooling) != (
            "first",
            "class_token",
        ):
            raise ValueError(
                "direction forward has a class token behind every frame and reads the last: leave "
                "class_token and pooling at their defaults"
            )
        if self.drop_path_rate >= 1:
            raise ValueError(f"drop_path_rate {self.drop_path_rate} must be below 1")
        return self

    @property
    def inner_dim(self) -> int:
        """D: channels inside the mixer."""
        return self.expand * self.embed_dim

    @property
    def dt_rank(self) -> int:
        """R: rank of the step-size projection."""
        return math.ceil(self.embed_dim / 16)

    @property
    def patches_per_frame(self) -> int:
        return (self.img_size // self.patch_size) ** 2

    @property
    def num_steps(self) -> int:
        """Positions in time after the tubelet embedding."""
        return self.num_frames // self.tubelet_size

    @property
    def num_tokens(self) -> int:
        """L: length of the scanned sequence, CLS tokens included."""
        return self.num_steps * self.patches_per_frame + self.num_cls_tokens

    @property
    def num_cls_tokens(self) -> int:
        """One in front of the clip, or one at the end of every step in time."""
        return self.num_steps if self.direction == "forward" else 1

    @property
    def tokens_per_step(self) -> int | None:
        """Tokens of a step in time, its CLS token included; None where steps have none."""
        return self.patches_per_frame + 1 if self.direction == "forward" else None

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """Rate at which the output of block i is dropped, one per block, 0 up to drop_path_rate."""
        last = max(self.depth - 1, 1)
        return tuple(self.drop_path_rate * i / last for i in range(self.depth))

    @property
    def unpublished(self) -> tuple[str, ...]:
        """Names of the options in use that no published model has."""
        names = ("class_token", "pooling", "bc_init", "delta_init")
        fields = type(self).model_fields
        return tuple(name for name in names if getattr(self, name) != fields[name].default)

    def recomputes(self, block: int) -> bool:
        """Whether block `block` is recomputed in backward instead of keeping its activations."""
        if self.activation_checkpointing == "none":
            return False
        every = 1 if self.activation_checkpointing == "full" else self.activation_checkpointing
        return block % every == every - 1


_TI = {"embed_dim": 192, "depth": 24}
_S = {"embed_dim": 384, "depth": 24}
_M = {"embed_dim": 576, "depth": 32}
_VIDEOMAMBA = {"layout": "separate", "mask_backward": False, "initial_state": "zero"}
_NANO = {"embed_dim": 64, "depth": 4, "img_size": 32, "patch_size": 8, "d_state": 8}
_TINY = {"embed_dim": 32, "depth": 2, "img_size": 16, "patch_size": 8, "d_state": 4}

PRESETS: dict[str, ModelConfig] = {
    name: ModelConfig.model_validate(fields)
    for name, fields in {
        "videomambapro-ti": _TI,
        "videomambapro-s": _S,
        "videomambapro-m": _M,
        "videomamba-ti": _TI | _VIDEOMAMBA,
        "videomamba-s": _S | _VIDEOMAMBA,
        "videomamba-m": _M | _VIDEOMAMBA,
        # The demo's model: learns eight kinds of motion in minutes on two CPU cores.
        "videomambapro-nano": _NANO | {"num_frames": 8, "num_classes": 8},
        "videomambapro-tiny-test": _TINY | {"num_frames": 4, "num_classes": 5},
    }.items()
}


def resolve_config(preset: str | ModelConfig, **overrides: Any) -> ModelConfig:
    """The preset of that name (or the given config) with `overrides` applied and validated.

    Raises ModelConfigError naming the preset, field or value at fault and the closest match.
    """
    if isinstance(preset, ModelConfig):
        base = preset
    elif preset in PRESETS:
        base = PRESETS[preset]
    else:
        raise ModelConfigError(_unknown("model preset", preset, PRESETS))
    for field in overrides:
        if field not in ModelConfig.model_fields:
            raise ModelConfigError(_unknown("model field", field, ModelConfig.model_fields))
    try:
        return ModelConfig.model_validate(base.model_dump() | overrides)
    except ValidationError as error:
        raise ModelConfigError(first_problem(error, ModelConfig, "model")) from error


def parse_config(text: str) -> ModelConfig:
    """The configuration in a JSON text of foreign origin. Raises ModelConfigError."""
    try:
        return ModelConfig.model_validate_json(text)
    except ValidationError as error:
        raise ModelConfigError(first_problem(error, ModelConfig, "model")) from error


def _unknown(kind: str, name: str, known: dict[str, Any]) -> str:
    return f"unknown {kind} '{name}': {did_you_mean(name, known)}"
