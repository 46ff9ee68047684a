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
    image = model.num_frames == 1
    keys = expected_keys(model, image=image)
    container = '{"model": ...}' if image else "a bare state dict"
    note = "; no temporal embedding, which starts at zero" if image else ""
    preset = read_merged(target.recipe)["model"][PRESET]
    fitted = target.config.model
    return [
        f"{file}: {container} of {len(keys)} tensors, cls_token to head.bias, "
        f"layers.0 to layers.{model.depth - 1}{note}",
        f"start from it with init_from={file}; to see how its keys fit: vmp convert {file} "
        f"{target.recipe}_init.safetensors --model {preset} --num-frames {fitted.num_frames} "
        f"--num-classes {fitted.num_classes}",
    ]
