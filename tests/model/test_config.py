import subprocess
import sys

import pytest
from pydantic import ValidationError

from model.config import PRESETS, ModelConfig, resolve_config
from model.errors import ModelConfigError, ModelError


def test_importing_the_config_does_not_import_torch() -> None:
    code = "import sys, model, model.config, model.flops; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_preset_takes_overrides() -> None:
    config = resolve_config("videomambapro-m", num_frames=16, num_classes=174)
    assert (config.embed_dim, config.num_frames, config.num_classes) == (576, 16, 174)
    assert PRESETS["videomambapro-m"].num_frames == 8


def test_a_config_takes_overrides_and_stays_frozen() -> None:
    config = ModelConfig(depth=2)
    assert resolve_config(config, depth=3).depth == 3
    with pytest.raises(ValidationError, match="frozen"):
        config.depth = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("preset", "overrides", "message"),
    [
        ("videomambapro-nan", {}, "unknown model preset 'videomambapro-nan': did you mean 'v"),
        ("resnet", {}, "unknown model preset 'resnet': known: videomambapro-ti"),
        ("videomambapro-m", {"depht": 3}, "unknown model field 'depht': did you mean 'depth'?"),
        ("videomambapro-m", {"depth": 0}, r"model\.depth: .*greater than 0 \(got 0\)"),
        ("videomambapro-m", {"layout": "both"}, r"model\.layout: .*'shared' or 'separate'"),
        ("videomambapro-m", {"img_size": 225}, "img_size 225 is not a multiple of patch_size 16"),
        (
            "videomambapro-m",
            {"tubelet_size": 3},
            "num_frames 8 is not a multiple of tubelet_size 3",
        ),
        ("videomambapro-m", {"drop_path_rate": 1.0}, "must be below 1"),
        (
            "videomambapro-m",
            {"activation_checkpointing": "some"},
            r"activation_checkpointing: .*'none' or 'full'.*integer",
        ),
    ],
)
def test_bad_input_is_named_in_one_line(
    preset: str, overrides: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelConfigError, match=message) as caught:
        resolve_config(preset, **overrides)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ModelError)
    assert isinstance(caught.value, ValueError)


def test_videomamba_presets_are_the_unmasked_separate_model() -> None:
    for size in ("ti", "s", "m"):
        pro, base = PRESETS[f"videomambapro-{size}"], PRESETS[f"videomamba-{size}"]
        assert (pro.layout, pro.mask_backward, pro.initial_state) == ("shared", True, "first_token")
        assert (base.layout, base.mask_backward, base.initial_state) == ("separate", False, "zero")
        assert (pro.embed_dim, pro.depth) == (base.embed_dim, base.depth)


def test_derived_sizes() -> None:
    config = resolve_config("videomambapro-m", num_frames=16, tubelet_size=2)
    assert (config.inner_dim, config.dt_rank) == (1152, 36)
    assert (config.num_steps, config.patches_per_frame, config.num_tokens) == (8, 196, 1569)


def test_drop_path_rates_rise_from_zero() -> None:
    rates = ModelConfig(depth=5, drop_path_rate=0.8).drop_path_rates
    assert rates == pytest.approx((0.0, 0.2, 0.4, 0.6, 0.8))
    assert ModelConfig(depth=1, drop_path_rate=0.8).drop_path_rates == (0.0,)


def test_which_blocks_are_recomputed() -> None:
    def blocks(setting: object) -> list[int]:
        config = resolve_config(ModelConfig(depth=6), activation_checkpointing=setting)
        return [index for index in range(6) if config.recomputes(index)]

    assert blocks("none") == []
    assert blocks("full") == [0, 1, 2, 3, 4, 5]
    assert blocks(2) == [1, 3, 5]
    assert blocks(4) == [3]
