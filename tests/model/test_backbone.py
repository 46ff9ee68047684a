from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model import ModelConfig, ModelError, VideoMamba, create_model

TINY = "videomambapro-tiny-test"

PUBLISHED_COUNTS = {
    "videomambapro-ti": (6_453_136, 272),
    "videomambapro-s": (23_965_072, 272),
    "videomambapro-m": (69_783_952, 360),
    "videomamba-ti": (7_033_744, 416),
    "videomamba-s": (25_568_656, 416),
    "videomamba-m": (73_875_856, 552),
}


def _clip(net: VideoMamba, batch: int = 2, seed: int = 0) -> Tensor:
    config = net.config
    shape = (batch, 3, config.num_frames, config.img_size, config.img_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _tiny(seed: int = 0, **overrides: Any) -> VideoMamba:
    torch.manual_seed(seed)
    net = create_model(TINY, **overrides)
    # Away from the initial point, where many terms vanish or coincide.
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return net


@pytest.mark.parametrize("preset", PUBLISHED_COUNTS)
def test_parameters_and_keys_are_the_published_ones(preset: str) -> None:
    with torch.device("meta"):
        net = create_model(preset)
    total = sum(parameter.numel() for parameter in net.parameters())
    assert (total, len(net.state_dict())) == PUBLISHED_COUNTS[preset]


def test_state_dict_of_a_mixer() -> None:
    shared = {
        "A_log",
        "A_b_log",
        "D",
        "in_proj.weight",
        "out_proj.weight",
        "conv1d.weight",
        "conv1d.bias",
        "x_proj.weight",
        "dt_proj.weight",
        "dt_proj.bias",
    }
    own = {f"{key}_b{dot}{rest}" for key, dot, rest in (k.partition(".") for k in shared)}
    own -= {"A_log_b", "A_b_log_b", "in_proj_b.weight", "out_proj_b.weight"}
    assert set(_tiny().layers[0].mixer.state_dict()) == shared
    assert set(_tiny(layout="separate").layers[0].mixer.state_dict()) == shared | own


@pytest.mark.parametrize("layout", ["shared", "separate"])
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("start", ["first_token", "zero"])
@pytest.mark.parametrize("value", ["conv", "raw"])
def test_every_option_trains(layout: str, mask: bool, start: str, value: str) -> None:
    net = _tiny(layout=layout, mask_backward=mask, initial_state=start, value=value)
    logits = net(_clip(net))
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_layouts_with_equal_weights_differ_by_the_direction_of_the_convolution_only() -> None:
    # One tap has no direction.
    shared, separate = _tiny(d_conv=1), _tiny(d_conv=1, layout="separate")
    state = shared.state_dict()
    twins = {"D_b": "D"} | {f"{name}_b": name for name in ("conv1d", "x_proj", "dt_proj")}
    for key in separate.state_dict():
        parts = key.split(".")
        state[key] = state[".".join(twins.get(part, part) for part in parts)]
    separate.load_state_dict(state)
    torch.testing.assert_close(separate(_clip(shared)), shared(_clip(shared)))


def test_the_cls_logits_depend_on_every_token() -> None:
    net = _tiny(depth=1).eval()
    clip = _clip(net, batch=1).requires_grad_()
    net(clip).sum().backward()
    assert clip.grad is not None
    assert (clip.grad.abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize(
    "overrides",
    [
        {"num_frames": 1},
        {"num_frames": 6, "tubelet_size": 2},
        {"img_size": 40, "num_frames": 3},
        {"embed_dim": 36, "d_state": 3, "d_conv": 3},
        {"depth": 1},
        {"expand": 1},
        {"d_conv": 1},
    ],
)
def test_odd_sizes(overrides: dict[str, int]) -> None:
    net = _tiny(**overrides)
    reference = create_model(net.config, scan_backend="reference")
    reference.load_state_dict(net.state_dict())
    torch.testing.assert_close(net(_clip(net)), reference(_clip(net)))


def test_patch_embedding_is_the_strided_convolution() -> None:
    net = _tiny(num_frames=4, tubelet_size=2)
    clip, proj = _clip(net), net.patch_embed.proj
    expected = nn.functional.conv3d(clip, proj.weight, proj.bias, stride=proj.stride)
    torch.testing.assert_close(net.patch_embed(clip), expected.flatten(3).permute(0, 2, 3, 1))


@pytest.mark.parametrize("shape", [(2, 3, 4, 16, 24), (2, 3, 5, 16, 16), (3, 4, 16, 16)])
def test_a_clip_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"model takes \(batch, 3, 4, 16, 16\)"):
        _tiny()(torch.zeros(shape))


def test_no_weight_decay_names_the_fragile_parameters() -> None:
    net = _tiny(layout="separate")
    spared = net.no_weight_decay()
    decayed = {name for name, _ in net.named_parameters()} - spared
    assert {name.rpartition(".")[2] for name in decayed} == {"weight"}
    kinds = {name.rpartition("mixer.")[2] for name in decayed}
    assert kinds == {
        "patch_embed.proj.weight",
        "head.weight",
        "in_proj.weight",
        "out_proj.weight",
        *(f"{name}{b}.weight" for name in ("conv1d", "x_proj", "dt_proj") for b in ("", "_b")),
    }


@pytest.mark.parametrize("setting", ["full", 2])
def test_activation_checkpointing_changes_no_gradient(setting: str | int) -> None:
    plain = _tiny(depth=4, drop_path_rate=0.5)
    checkpointed = create_model(plain.config, activation_checkpointing=setting)
    checkpointed.load_state_dict(plain.state_dict())
    keep = torch.tensor([[True, True, False, True], [True, False, True, True]])
    saved = {}
    for net in (plain, checkpointed):
        sizes: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(_recorder(sizes), lambda tensor: tensor):
            loss = net(_clip(net), keep).square().sum()
        saved[net] = sum(sizes.values())
        loss.backward()
    for (name, a), (_, b) in zip(
        plain.named_parameters(), checkpointed.named_parameters(), strict=True
    ):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad), name
    assert saved[checkpointed] < 0.8 * saved[plain]


def _recorder(sizes: dict[int, int]) -> Any:
    """A pack hook that notes the bytes of every distinct storage kept for backward."""

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    return pack


def test_parameters_and_gradients_stay_fp32_under_autocast() -> None:
    net = _tiny()
    seen: dict[str, torch.dtype] = {}

    def record(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            seen[name] = output[1].dtype if isinstance(output, tuple) else output.dtype

        return hook

    net.layers[1].register_forward_hook(record("residual"))
    net.layers[1].mixer.in_proj.register_forward_hook(record("projection"))
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(_clip(net))
    logits.float().square().sum().backward()
    assert seen == {"residual": torch.float32, "projection": torch.bfloat16}
    for name, parameter in net.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32, name
    exact = net(_clip(net))
    torch.testing.assert_close(logits.float(), exact, atol=0.05, rtol=0.05)


def test_the_state_matrix_is_not_rounded_under_autocast() -> None:
    # log(1.001) and log(1) are one bfloat16 number apart from nothing: both round to 0.
    net = _tiny(depth=1)
    nudged = create_model(net.config)
    nudged.load_state_dict(net.state_dict())
    with torch.no_grad():
        net.layers[0].mixer.A_b_log.fill_(1.0)
        nudged.layers[0].mixer.A_b_log.fill_(1.0 + 2**-12)
        gradients = []
        for model in (net, nudged):
            with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
                model(_clip(model)).float().sum().backward()
            gradients.append(model.layers[0].mixer.A_b_log.grad)
    assert not torch.equal(*gradients)


def test_a_config_and_a_preset_build_the_same_model() -> None:
    torch.manual_seed(3)
    first = create_model(TINY)
    torch.manual_seed(3)
    second = create_model(ModelConfig.model_validate(first.config.model_dump()))
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_compiled_model_gives_the_same_gradients(layout: str) -> None:
    net = _tiny(layout=layout, depth=1)
    expected = torch.autograd.grad(net(_clip(net)).square().sum(), list(net.parameters()))
    compiled = torch.compile(net)
    actual = torch.autograd.grad(compiled(_clip(net)).square().sum(), list(net.parameters()))
    for name, a, b in zip(dict(net.named_parameters()), actual, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=name)
