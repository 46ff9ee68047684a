import pytest
import torch

from model import create_model
from pipeline.config import build_config, config_difference, in_todays_words, load_config
from pipeline.training.config import OptimConfig
from pipeline.training.optim import lr_scale, parameter_groups

DECAY = 0.8
# depth 2: embeddings 0.8**3, block 0 0.8**2, block 1 0.8.
LAYER_WISE = {
    "cls_token": 0.512,
    "pos_embed": 0.512,
    "temporal_pos_embedding": 0.512,
    "patch_embed.": 0.512,
    "layers.0.": 0.64,
    "layers.1.": 0.8,
    "norm_f.": 1.0,
    "head.": 1.0,
}
PUBLISHED = {
    "cls_token": 0.512,
    "pos_embed": 0.512,
    "temporal_pos_embedding": 1.0,
    "patch_embed.": 0.512,
    "layers.": 1.0,
    "norm_f.": 1.0,
    "head.": 1.0,
}


def groups_of(profile: str, layout: str = "shared", **fields: float) -> dict[str, tuple]:
    model = create_model("videomambapro-tiny-test", layout=layout)
    groups = parameter_groups(
        model.named_parameters(),
        OptimConfig(profile=profile, weight_decay=0.1, **fields),
        no_weight_decay=model.no_weight_decay(),
        depth=model.config.depth,
    )
    found = {n: (g["weight_decay"], g["lr_scale"]) for g in groups for n in g["names"]}
    assert len(found) == sum(1 for _ in model.parameters())
    assert len({(g["weight_decay"], g["lr_scale"]) for g in groups}) == len(groups)
    return found


def test_corrected_profile_decays_matrices_only() -> None:
    found = groups_of("corrected")
    assert found["layers.0.mixer.in_proj.weight"] == (0.1, 1.0)
    assert found["layers.0.mixer.A_log"] == (0.0, 1.0)
    assert found["layers.0.mixer.dt_proj.bias"] == (0.0, 1.0)
    assert found["pos_embed"] == (0.0, 1.0)


def test_parity_profile_repeats_what_the_published_script_did() -> None:
    found = groups_of("parity")
    assert found["layers.0.mixer.A_log"] == (0.1, 1.0)
    assert found["layers.0.mixer.conv1d.weight"] == (0.1, 1.0)
    decay, scale = found["pos_embed"]
    assert (decay, scale) == (0.0, pytest.approx(0.75**3))
    assert found["patch_embed.proj.weight"] == (0.1, pytest.approx(0.75**3))
    assert found["temporal_pos_embedding"] == (0.0, 1.0)


@pytest.mark.parametrize("layout", ["shared", "separate"])
@pytest.mark.parametrize(
    ("profile", "expected"), [("corrected", LAYER_WISE), ("parity", PUBLISHED)]
)
def test_every_parameter_has_the_learning_rate_of_its_layer(
    profile: str, layout: str, expected: dict[str, float]
) -> None:
    found = groups_of(profile, layout, layer_decay=DECAY)
    for name, (_, scale) in found.items():
        (wanted,) = [value for prefix, value in expected.items() if name.startswith(prefix)]
        assert scale == pytest.approx(wanted), name


def test_scales_of_the_published_depth() -> None:
    """VideoMamba-M with a decay of 0.75: what the notes say of the accident, and its repair."""
    for profile, first_block in (("parity", 1.0), ("corrected", 0.75**32)):
        config = OptimConfig(profile=profile, layer_decay=0.75)
        assert lr_scale("pos_embed", config, 32) == pytest.approx(7.5e-5, rel=0.01)
        assert lr_scale("layers.0.mixer.A_log", config, 32) == pytest.approx(first_block)
        assert lr_scale("layers.31.norm.weight", config, 32) in (0.75, 1.0)
        assert lr_scale("clip_decoder.0.head.weight", config, 32) == 1.0
        assert lr_scale("mask_token", config, 32) == pytest.approx(0.75**33)


def test_without_a_decay_there_is_one_learning_rate() -> None:
    assert {scale for _, scale in groups_of("corrected").values()} == {1.0}
    assert {scale for _, scale in groups_of("parity", layer_decay=1.0).values()} == {1.0}


def test_a_frozen_parameter_is_in_no_group() -> None:
    model = create_model("videomambapro-tiny-test")
    model.cls_token.requires_grad_(False)
    groups = parameter_groups(
        model.named_parameters(), OptimConfig(), no_weight_decay=(), depth=model.config.depth
    )
    named = [name for group in groups for name in group["names"]]  # type: ignore[attr-defined]
    assert "cls_token" not in named
    assert sum(len(group["params"]) for group in groups) == len(named)  # type: ignore[arg-type]


def test_one_step_moves_each_layer_by_its_share() -> None:
    """Adam's first step is lr * sign(gradient), so the parameters move by their scale."""
    model = create_model("videomambapro-tiny-test")
    config = OptimConfig(layer_decay=0.5, lr=1.0, weight_decay=0.0)
    groups = parameter_groups(
        model.named_parameters(), config, no_weight_decay=model.no_weight_decay(), depth=2
    )
    for group in groups:
        group["lr"] = group["lr_scale"]  # as `Engine.step` does
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(groups).step()
    moved = {name: before[name] - p.detach() for name, p in model.named_parameters()}
    for name, share in {"pos_embed": 1 / 8, "layers.0.norm.weight": 1 / 4, "head.bias": 1}.items():
        torch.testing.assert_close(moved[name], torch.full_like(moved[name], share))


def test_the_default_depends_on_the_profile() -> None:
    assert load_config("demo").optim.layer_decay == 1.0
    assert load_config("demo", ["optim.profile=parity"]).optim.layer_decay == 0.75
    both = ["optim.layer_decay=0.8", "optim.profile=parity"]
    assert load_config("demo", both).optim.layer_decay == 0.8


def test_a_run_from_when_only_parity_had_a_layer_decay_is_the_same_run() -> None:
    for profile, decay in (("corrected", 1.0), ("parity", 0.75)):
        today = load_config("demo", [f"optim.profile={profile}"])
        stored = today.model_dump(mode="json")
        del stored["format"]
        stored["optim"]["layer_decay"] = 0.75
        read = build_config(in_todays_words(stored), source="stored")
        assert read.optim.layer_decay == decay
        assert config_difference(read, today) == []
    today = load_config("demo", ["optim.layer_decay=0.75"])
    read = build_config(in_todays_words(today.model_dump(mode="json")), source="stored")
    assert read == today
