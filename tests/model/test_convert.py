"""Weights in every published layout, made here; none runs code or is lost silently."""

import argparse
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from model import VideoMamba, WeightsError, create_model, from_pretrained, load_model, save_model
from model.config import ModelConfig, resolve_config
from model.convert import convert, load_pretrained
from model.key_report import KeyReport

TINY = "videomambapro-tiny-test"
VIDEOMAMBA = {"layout": "separate", "mask_backward": False, "initial_state": "zero"}


def _net(seed: int = 0, **overrides: Any) -> VideoMamba:
    torch.manual_seed(seed)
    net = create_model(TINY, **overrides)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return net.eval()


def _save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def _clip(config: ModelConfig) -> Tensor:
    shape = (2, 3, config.num_frames, config.img_size, config.img_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _same(a: VideoMamba, b: VideoMamba) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


CONTAINERS: dict[str, Any] = {
    "bare": lambda state: state,
    "image": lambda state: {"model": state},
    "training": lambda state: {
        "model": state,
        "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": 1e-3}]},
        "epoch": 7,
        "scaler": {"scale": 1024.0},
        "args": argparse.Namespace(lr=1e-3, model="videomamba_tiny", betas=(0.9, 0.999)),
    },
    "deepspeed": lambda state: {"module": state, "global_steps": 12, "lr_scheduler": None},
    "backbone.": lambda state: {"model": {f"backbone.{k}": v for k, v in state.items()}},
    "encoder.": lambda state: {f"encoder.{k}": v for k, v in state.items()},
    "module.": lambda state: {f"module._orig_mod.{k}": v for k, v in state.items()},
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("options", [{}, VIDEOMAMBA], ids=["shared", "separate"])
def test_every_container_gives_the_same_model(
    tmp_path: Path, container: str, options: dict[str, Any]
) -> None:
    net = _net(**options)
    path = _save(tmp_path / "weights.pth", CONTAINERS[container](net.state_dict()))
    loaded = from_pretrained(path)
    assert loaded.config == net.config
    assert _same(loaded, net)
    assert not loaded.training


def test_convert_writes_a_file_that_loads_as_it_was(tmp_path: Path) -> None:
    net = _net(**VIDEOMAMBA)
    source = _save(tmp_path / "weights.pth", {"model": net.state_dict()})
    report = convert(source, tmp_path / "out.safetensors")
    assert {entry.action for entry in report.entries} == {"loaded"}
    assert len(report.entries) == len(net.state_dict())
    loaded = load_model(tmp_path / "out.safetensors")
    assert loaded.config == net.config
    assert _same(loaded, net)
    assert torch.equal(loaded(_clip(net.config)), net(_clip(net.config)))
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []


def test_videomamba_weights_start_a_videomambapro_of_separate_layout(tmp_path: Path) -> None:
    net = _net(**VIDEOMAMBA)
    path = _save(tmp_path / "weights.pth", net.state_dict())
    pro = from_pretrained(path, mask_backward=True, initial_state="first_token")
    assert _same(pro, net)
    assert not torch.allclose(pro(_clip(net.config)), net(_clip(net.config)))


def test_image_weights_become_a_video_model(tmp_path: Path) -> None:
    image = _net(num_frames=1, num_classes=1000)
    state = image.state_dict()
    del state["temporal_pos_embedding"]
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].squeeze(2)
    state |= {"distill_head.weight": torch.ones(1000, 32), "distill_head.bias": torch.ones(1000)}
    path = _save(tmp_path / "image.pth", {"model": state})

    video, report = load_pretrained(path, num_frames=6, tubelet_size=3, num_classes=5)

    weight = video.patch_embed.proj.weight
    assert torch.equal(weight[:, :, 1], state["patch_embed.proj.weight"])
    assert (weight[:, :, [0, 2]] == 0).all()
    assert (video.temporal_pos_embedding == 0).all()
    assert torch.equal(video.layers[1].mixer.A_log, image.layers[1].mixer.A_log)
    dropped = {entry.source for entry in report.of("dropped")}
    assert dropped == {"head.weight", "head.bias", "distill_head.weight", "distill_head.bias"}
    initialised = {entry.target for entry in report.of("initialised")}
    assert initialised == {"temporal_pos_embedding", "head.weight", "head.bias"}


def test_position_embeddings_are_resized(tmp_path: Path) -> None:
    net = _net()
    path = _save(tmp_path / "weights.pth", net.state_dict())
    larger, report = load_pretrained(path, img_size=32, num_frames=8)

    assert torch.equal(larger.pos_embed[:, 0], net.pos_embed[:, 0])
    grid = net.pos_embed[:, 1:].detach().reshape(1, 2, 2, 32).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, (4, 4), mode="bicubic", align_corners=False)
    torch.testing.assert_close(
        larger.pos_embed[:, 1:].detach(), expected.flatten(2).transpose(1, 2)
    )
    temporal = net.temporal_pos_embedding.detach().transpose(1, 2)
    expected = F.interpolate(temporal, 8, mode="linear", align_corners=False).transpose(1, 2)
    torch.testing.assert_close(larger.temporal_pos_embedding.detach(), expected)
    assert {entry.target for entry in report.of("resized")} == {
        "pos_embed",
        "temporal_pos_embedding",
    }


def test_kinetics_710_head_gives_its_first_400_rows(tmp_path: Path) -> None:
    net = _net(num_classes=710)
    path = _save(tmp_path / "weights.pth", net.state_dict())
    k400 = from_pretrained(path, num_classes=400)
    assert torch.equal(k400.head.weight, net.head.weight[:400])
    assert torch.equal(k400.head.bias, net.head.bias[:400])


def test_masked_pretraining_weights(tmp_path: Path) -> None:
    net = _net(**VIDEOMAMBA)
    state = {k: v for k, v in net.state_dict().items() if not k.startswith("head.")}
    state["norm.weight"] = state.pop("norm_f.weight")
    state |= {"clip_decoder.0.head.weight": torch.ones(4, 32), "clip_pos_embed": torch.ones(1, 4)}
    path = _save(tmp_path / "pretrained.pth", {"model": state})

    with pytest.raises(WeightsError, match="no classification head: give num_classes"):
        from_pretrained(path)
    tuned, report = load_pretrained(path, num_classes=5)
    assert torch.equal(tuned.norm_f.weight, net.norm_f.weight)
    assert [(e.source, e.target) for e in report.of("renamed")] == [
        ("norm.weight", "norm_f.weight")
    ]
    assert len(report.of("dropped")) == 2


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    state = {k: v.half() for k, v in _net().state_dict().items()}
    loaded = from_pretrained(_save(tmp_path / "half.pth", state))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.head.weight, state["head.weight"].float())


def test_separate_to_shared_needs_consent(tmp_path: Path) -> None:
    net = _net(**VIDEOMAMBA)
    path = _save(tmp_path / "weights.pth", net.state_dict())
    with pytest.raises(WeightsError, match=r"layout 'separate'; .* discards 12 tensors"):
        from_pretrained(path, layout="shared")
    shared, report = load_pretrained(path, layout="shared", allow_lossy=True)
    assert torch.equal(shared.layers[0].mixer.A_b_log, net.layers[0].mixer.A_b_log)
    assert torch.equal(shared.layers[0].mixer.conv1d.weight, net.layers[0].mixer.conv1d.weight)
    assert report.count("dropped") == 12
    assert "layout separate -> shared" in str(report)


def test_another_direction_needs_consent(tmp_path: Path) -> None:
    both, forward = _net(), _net(direction="forward")
    paths = [
        _save(tmp_path / name, net.state_dict()) for name, net in [("b", both), ("f", forward)]
    ]
    assert _same(from_pretrained(paths[1]), forward)  # its shapes say what it is
    with pytest.raises(WeightsError, match="direction 'bidirectional', the model 'forward'"):
        from_pretrained(paths[0], direction="forward")
    with pytest.raises(WeightsError, match="direction 'forward', the model 'bidirectional'"):
        from_pretrained(paths[1], direction="bidirectional")
    net, report = load_pretrained(paths[0], direction="forward", allow_lossy=True)
    assert [entry.source for entry in report.of("dropped")] == [
        f"layers.{layer}.mixer.A_b_log" for layer in range(2)
    ]
    assert all(torch.equal(both.state_dict()[k], v) for k, v in net.state_dict().items())
    back = from_pretrained(paths[1], direction="bidirectional", allow_lossy=True)
    assert torch.equal(back.layers[1].mixer.A_b_log, forward.layers[1].mixer.A_log)


def test_shared_to_separate_needs_consent(tmp_path: Path) -> None:
    net = _net()
    path = _save(tmp_path / "weights.pth", net.state_dict())
    with pytest.raises(WeightsError, match="changes the function"):
        from_pretrained(path, layout="separate")
    separate = from_pretrained(path, layout="separate", allow_lossy=True)
    mixer = separate.layers[1].mixer
    assert torch.equal(mixer.x_proj_b.weight, net.layers[1].mixer.x_proj.weight)
    assert torch.equal(mixer.D_b, net.layers[1].mixer.D)


class _Hostile:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("protocol_zip", [True, False], ids=["zip", "legacy"])
def test_a_hostile_pickle_is_refused_unrun(tmp_path: Path, protocol_zip: bool) -> None:
    trace = tmp_path / "was-run"
    content = {"model": _net().state_dict(), "args": _Hostile(trace)}
    path = tmp_path / "hostile.pth"
    torch.save(content, path, _use_new_zipfile_serialization=protocol_zip)
    with pytest.raises(WeightsError, match=r"hostile\.pth: not loaded.*system") as caught:
        from_pretrained(path)
    assert "\n" not in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.pth", b"", "damaged"),
        ("text.pth", b"these are no weights\n", "damaged"),
        ("text.safetensors", b"these are no weights\n", "damaged safetensors"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        from_pretrained(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    for name, write in [("a.pth", torch.save), ("a.safetensors", None)]:
        path = tmp_path / name
        if write is None:
            save_model(path, _net())
        else:
            write(_net().state_dict(), path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(WeightsError, match=f"{name}.*damaged"):
            from_pretrained(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such weights file"):
        from_pretrained(tmp_path / "absent.pth")


@pytest.mark.parametrize(
    "content", [{"epoch": 3}, [1, 2], {"model": {}}, {"model": {"a": 1}}], ids=str
)
def test_a_file_without_weights_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(WeightsError, match="holds no state_dict"):
        from_pretrained(_save(tmp_path / "x.pth", content))


def test_someone_elses_model_is_refused(tmp_path: Path) -> None:
    path = _save(tmp_path / "vit.pth", {"blocks.0.attn.qkv.weight": torch.ones(3, 3)})
    with pytest.raises(WeightsError, match=r"vit\.pth: not a VideoMamba state_dict"):
        from_pretrained(path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"depth": 3}, r"no 'layers\.2\.norm\.weight'.*file: 2 blocks, model: depth 3"),
        ({"depth": 1}, r"the model has no 'layers\.1\."),
        ({"embed_dim": 48}, "'cls_token' cannot be fitted"),
        ({"d_state": 8}, r"A_log' cannot be fitted: \(64, 4\) -> \(64, 8\)"),
        ({"patch_size": 4}, "'patch_embed.proj.weight' cannot be fitted"),
    ],
)
def test_weights_of_another_shape_are_refused(
    tmp_path: Path, overrides: dict[str, int], message: str
) -> None:
    path = _save(tmp_path / "weights.pth", _net().state_dict())
    with pytest.raises(WeightsError, match=message):
        from_pretrained(path, **overrides)


def test_an_unknown_or_a_doubled_key_is_refused(tmp_path: Path) -> None:
    state = _net().state_dict()
    path = _save(tmp_path / "extra.pth", state | {"surprise": torch.ones(1)})
    with pytest.raises(WeightsError, match="the model has no 'surprise'"):
        from_pretrained(path)
    path = _save(tmp_path / "twice.pth", state | {"module.head.bias": torch.ones(5)})
    with pytest.raises(WeightsError, match=r"two tensors are named 'head\.bias'"):
        from_pretrained(path)


def test_load_model_wants_this_projects_own_files(tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    save_file(_net().state_dict(), path)
    with pytest.raises(WeightsError, match="carries no model configuration"):
        load_model(path)
    assert _same(from_pretrained(path), _net())

    state = {k: v for k, v in _net().state_dict().items() if k != "head.bias"}
    metadata = {"model_config": resolve_config(TINY).model_dump_json()}
    save_file(state, tmp_path / "less.safetensors", metadata)
    with pytest.raises(WeightsError, match=r"does not match its own configuration.*head\.bias"):
        load_model(tmp_path / "less.safetensors")


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be written"):
        save_model(tmp_path / "absent" / "x.safetensors", _net())


def test_the_report_is_a_table_with_layers_folded() -> None:
    report = KeyReport()
    for layer in range(12):
        report.add("loaded", f"layers.{layer}.norm.weight", f"layers.{layer}.norm.weight")
    report.add("dropped", "head.weight", None, "1000-way head")
    assert str(report).splitlines() == [
        "action   keys  source                target                how",
        "loaded   12    layers.*.norm.weight  layers.*.norm.weight",
        "dropped  1     head.weight           -                     1000-way head",
        "12 loaded, 1 dropped",
    ]
