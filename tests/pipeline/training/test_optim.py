import pytest

from model import create_model
from pipeline.training.config import OptimConfig
from pipeline.training.optim import parameter_groups


def groups_of(profile: str) -> dict[str, tuple[float, float]]:
    model = create_model("videomambapro-tiny-test")
    groups = parameter_groups(
        model.named_parameters(),
        OptimConfig(profile=profile, weight_decay=0.1),
        no_weight_decay=model.no_weight_decay(),
        depth=model.config.depth,
    )
    found = {n: (g["weight_decay"], g["lr_scale"]) for g in groups for n in g["names"]}
    assert len(found) == sum(1 for _ in model.parameters())
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
