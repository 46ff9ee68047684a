"""Which tensors a released file should hold, and how it becomes the start of a recipe."""

from __future__ import annotations

from model.config import ModelConfig
from pipeline.config.load import PRESET, read_merged
from pipeline.reproduce.chain import Stage

_OUTSIDE = ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
_AFTER = ("norm_f.weight", "head.weight", "head.bias")
_TIME = "temporal_pos_embedding"
_SHARED = (
    *("A_log", "D", "A_b_log", "in_proj.weight", "out_proj.weight"),
    *("conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias"),
)
_BACKWARD = (
    *("D_b", "conv1d_b.weight", "conv1d_b.bias"),
    *("x_proj_b.weight", "dt_proj_b.weight", "dt_proj_b.bias"),
)


def expected_keys(model: ModelConfig, *, image: bool) -> list[str]:
    """Return the names of the tensors of a released file.

    An image model's file has no temporal embedding.
    """
    mixer = _SHARED + (_BACKWARD if model.layout == "separate" else ())
    block = ("norm.weight", *(f"mixer.{name}" for name in mixer))
    blocks = [f"layers.{i}.{name}" for i in range(model.depth) for name in block]
    return [*_OUTSIDE, *(() if image else (_TIME,)), *blocks, *_AFTER]


def describe(source: Stage, target: Stage) -> list[str]:
    """Return lines about the released file that stands for `source`, as the start of `target`."""
    file = source.origin.released
    assert file is not None
    model = source.config.model
    blocks = f"layers.0 to layers.{model.depth - 1}"
    if source.config.task.kind == "masked":
        content = f"{blocks}, norm.weight for norm_f.weight, clip_decoder.0.*, and no head"
    elif model.num_frames == 1:
        count = len(expected_keys(model, image=True))
        content = (
            f'{{"model": ...}} of {count} tensors, cls_token to head.bias, {blocks}; no temporal '
            "embedding, which starts at zero"
        )
    else:
        count = len(expected_keys(model, image=False))
        content = f"a bare state dict of {count} tensors, cls_token to head.bias, {blocks}"
    preset = read_merged(target.recipe)["model"][PRESET]
    fitted = target.config.model
    return [
        f"{file}: {content}",
        f"start from it with init_from={file}; to see how its keys fit: vmp convert {file} "
        f"{target.recipe}_init.safetensors --model {preset} --num-frames {fitted.num_frames} "
        f"--num-classes {fitted.num_classes}",
    ]
