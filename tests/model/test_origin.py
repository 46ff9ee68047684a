"""Files in the published layouts, with random weights, go in and come back bit for bit."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model import WeightsError, create_model, from_pretrained, load_model
from model.containers import read_container
from model.convert import convert, open_whole
from model.origin import restore

TINY = "videomambapro-tiny-test"
VIDEOMAMBA = {"layout": "separate", "mask_backward": False, "initial_state": "zero"}
State = dict[str, Tensor]


def draw(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def video(**options: Any) -> State:
    """The keys of a video model, in random numbers of every parameter's shape."""
    state = create_model(TINY, **options).state_dict()
    return {key: draw(*value.shape, seed=i) for i, (key, value) in enumerate(state.items())}


def image() -> State:
    """videomamba_{t,s}16_in1k: 2-D patches, no embedding of time, a head of 1000."""
    state = video(num_frames=1, num_classes=1000, **VIDEOMAMBA)
    del state["temporal_pos_embedding"]
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].squeeze(2)
    return state


def distilled() -> State:
    """videomamba_{m,b}16_in1k: the student keeps its norm and projection to the teacher."""
    rest = {"distill_head.0.weight": draw(32), "distill_head.1.weight": draw(24, 32)}
    return image() | rest | {"distill_head.1.bias": draw(24)}


def masked() -> State:
    """videomamba_m16_*_mask_pt: `norm`, a decoder to CLIP, no head."""
    state = {k: v for k, v in video(**VIDEOMAMBA).items() if not k.startswith("head.")}
    state["norm.weight"] = state.pop("norm_f.weight")
    decoder = {
        "head.weight": (12, 32),
        "head.bias": (12,),
        "norm.weight": (12,),
        "norm.bias": (12,),
    }
    return state | {f"clip_decoder.0.{key}": draw(*shape) for key, shape in decoder.items()}


def multimodal() -> State:
    """m16_{5M,17M,25M}_f8: a masked model as `vision_encoder`, text encoder and teacher."""
    vision = {f"vision_encoder.{key}": value for key, value in masked().items()}
    return vision | {
        "vision_encoder.pool_norm.weight": draw(32),
        "text_encoder.bert.embeddings.position_ids": torch.arange(9)[None],
        "text_encoder.bert.encoder.layer.0.output.dense.weight": draw(8, 8),
        "vision_proj.weight": draw(6, 32),
        "text_proj.weight": draw(6, 8),
        "itm_head.weight": draw(2, 8),
        "temp": draw(),
        "clip_teacher.class_embedding": draw(16).half(),
    }


def under(wrapper: str, make: Callable[[], State]) -> Callable[[], Any]:
    return lambda: {wrapper: make()}


def prefixed(prefix: str, make: Callable[[], State]) -> Callable[[], Any]:
    return lambda: {f"{prefix}{key}": value for key, value in make().items()}


def training() -> dict[str, Any]:
    return {
        "model": video(**VIDEOMAMBA),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]},
        "epoch": 7,
        "scaler": {"scale": 1024.0},
        "args": argparse.Namespace(lr=1e-3, betas=(0.9, 0.999)),
        "model_ema": {key: value + 1 for key, value in video(**VIDEOMAMBA).items()},
    }


def mp_rank() -> dict[str, Any]:
    """mp_rank_00_model_states.pt: what DeepSpeed's engine saves, in 16 bits."""
    state = OrderedDict((key, value.bfloat16()) for key, value in video(**VIDEOMAMBA).items())
    return {
        "module": state,
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [OrderedDict((key, value.shape) for key, value in state.items())],
        "frozen_param_shapes": None,
        "shared_params": {},
        "lr_scheduler": None,
        "data_sampler": None,
        "random_ltd": None,
        "sparse_tensor_module_names": set(),
        "skipped_steps": 0,
        "global_steps": 40,
        "global_samples": 640,
        "dp_world_size": 2,
        "mp_world_size": 1,
        "ds_config": {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}},
        "ds_version": "0.19.8",
        "epoch": 3,
    }


# name -> (content, key of its weights, whether the model has no head of its own)
OFFICIAL: dict[str, tuple[Callable[[], Any], str | None, bool]] = {
    "video": (lambda: video(**VIDEOMAMBA), None, False),
    "videomambapro": (video, None, False),
    "image": (under("model", image), "model", False),
    "distilled": (under("model", distilled), "model", False),
    "masked": (under("model", masked), "model", True),
    "masked, bare": (masked, None, True),
    "multimodal": (under("module", multimodal), "module", True),
    "training": (training, "model", False),
    "mp_rank": (mp_rank, "module", False),
    "state_dict": (under("state_dict", prefixed("model.", video)), "state_dict", False),
    "backbone.": (under("model", prefixed("backbone.", video)), "model", False),
    "module.": (prefixed("module._orig_mod.", video), None, False),
    "half": (lambda: {k: v.half() for k, v in video().items()}, None, False),
    "double": (lambda: {k: v.double() + 1e-12 for k, v in video().items()}, None, False),
}


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(
        first[key].dtype == second[key].dtype and torch.equal(first[key], second[key])
        for key in first
    )


@pytest.mark.parametrize("name", OFFICIAL)
def test_there_and_back(tmp_path: Path, name: str) -> None:
    make, wrapper, headless = OFFICIAL[name]
    original = make()
    torch.save(original, tmp_path / "official.pth")
    fields = {"num_classes": 5} if headless else {}

    ours = tmp_path / "ours.safetensors"
    convert(tmp_path / "official.pth", ours, keep_rest=True, **fields)
    weights = original if wrapper is None else original[wrapper]
    assert restore(ours, tmp_path / "back.pth") == len(weights)
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert same(back if wrapper is None else back[wrapper], dict(weights))

    # In between it is a model of ours, with the same values.
    net = load_model(ours)
    block = next(key for key in weights if key.endswith("layers.1.mixer.A_log"))
    assert torch.equal(net.layers[1].mixer.A_log, weights[block].float())
    again = from_pretrained(tmp_path / "back.pth", **fields)
    ours_state = {key: value for key, value in net.state_dict().items() if "head" not in key}
    assert all(torch.equal(again.state_dict()[key], value) for key, value in ours_state.items())


def test_safetensors_there_and_back(tmp_path: Path) -> None:
    save_file(masked(), tmp_path / "official.safetensors", {"format": "pt"})
    convert(tmp_path / "official.safetensors", tmp_path / "o.pth", keep_rest=True, num_classes=5)
    restore(tmp_path / "o.pth", tmp_path / "back.safetensors")
    assert same(load_file(tmp_path / "back.safetensors"), masked())


def test_resizing_is_undone_if_the_rest_was_kept(tmp_path: Path) -> None:
    torch.save(image(), tmp_path / "official.pth")
    ours = tmp_path / "ours.safetensors"
    convert(tmp_path / "official.pth", ours, keep_rest=True, num_frames=8, img_size=32)
    assert load_model(ours).config.num_frames == 8
    restore(ours, tmp_path / "back.pth")
    assert same(torch.load(tmp_path / "back.pth", weights_only=True), image())


def test_the_average_is_read_on_request(tmp_path: Path) -> None:
    torch.save(training(), tmp_path / "official.pth")
    convert(tmp_path / "official.pth", tmp_path / "ours.safetensors", ema=True)
    loaded = load_model(tmp_path / "ours.safetensors")
    assert torch.equal(loaded.cls_token, video(**VIDEOMAMBA)["cls_token"] + 1)
    restore(tmp_path / "ours.safetensors", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert same(back["model_ema"], training()["model_ema"])

    torch.save({"model_ema": video(), "epoch": 3}, tmp_path / "only.pth")
    assert read_container(tmp_path / "only.pth").wrapper == "model_ema"
    for name, content in {"bare.pth": video(), "none.pth": {"model": video()}}.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(WeightsError, match="no moving average; looked under model_ema, ") as no:
            read_container(tmp_path / name, ema=True)
        assert "\n" not in str(no.value)


def test_what_was_not_kept_is_not_made_up(tmp_path: Path) -> None:
    torch.save({"model": distilled()}, tmp_path / "official.pth")
    convert(tmp_path / "official.pth", tmp_path / "ours.safetensors")
    with pytest.raises(WeightsError, match=r"'distill_head\.0\.weight' .* with --keep-rest"):
        restore(tmp_path / "ours.safetensors", tmp_path / "back.pth")
    with pytest.raises(WeightsError, match="does not say what it was converted from"):
        restore(tmp_path / "official.pth", tmp_path / "back.pth")
    convert(tmp_path / "official.pth", tmp_path / "ours.safetensors", keep_rest=True)
    with pytest.raises(WeightsError, match=r"wraps its tensors in 'model'.*a name in \.pth"):
        restore(tmp_path / "ours.safetensors", tmp_path / "back.safetensors")
    assert not (tmp_path / "back.pth").exists()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "origin metadata: content: Invalid JSON"),
        ('{"wrapper": null}', "origin metadata: keys: Field required"),
        ('{"parameter": "nothing", "dtype": "float32", "shape": [1]}', "'x' of its original was"),
        ('{"parameter": "cls_token", "dtype": "save", "shape": [1, 1, 32]}', "no dtype 'save'"),
        ('{"parameter": "cls_token", "dtype": "float32", "shape": [7]}', "'x' has 32 numbers, its"),
        ('{"parameter": "cls_token", "dtype": "float32", "shape": [-1, -1]}', "'x' has 32 numbers"),
    ],
)
def test_a_damaged_record_is_one_line(tmp_path: Path, record: str, message: str) -> None:
    if '"parameter"' in record:
        record = f'{{"wrapper": null, "keys": {{"x": {record}}}}}'
    save_file(create_model(TINY).state_dict(), tmp_path / "w.safetensors", {"origin": record})
    with pytest.raises(WeightsError, match=message) as refused:
        restore(tmp_path / "w.safetensors", tmp_path / "back.pth")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "back.pth").exists()


def test_a_teacher_that_claims_terabytes_is_not_kept(tmp_path: Path) -> None:
    rest = {"clip_teacher.weight": torch.zeros(1).expand(10**12)}
    torch.save({"model": video() | rest}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"'clip_teacher\.weight' claims 1,000,000,000,000"):
        convert(tmp_path / "w.pth", tmp_path / "out.safetensors", keep_rest=True)


def test_weights_that_zero_3_left_elsewhere(tmp_path: Path) -> None:
    state = {key: torch.zeros(0) for key in video()}
    torch.save({"module": state}, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(WeightsError, match=r"is empty, of shape \(0,\): ZeRO stage 3 .*zero_to_fp"):
        from_pretrained(tmp_path / "mp_rank_00_model_states.pt")


def test_an_exported_file_without_its_head_is_no_model_with_a_fresh_one(tmp_path: Path) -> None:
    net = create_model(TINY)
    state = {key: value for key, value in net.state_dict().items() if not key.startswith("head.")}
    config = net.config.model_dump_json()
    torch.save({"model": state, "model_config": config}, tmp_path / "w.pth")
    save_file(state, tmp_path / "w.safetensors", {"model_config": config})
    torch.save({"model": masked()}, tmp_path / "released.pth")
    for name in ("w.pth", "w.safetensors", "released.pth"):
        with pytest.raises(WeightsError, match=r"head\.|no classification head") as refused:
            open_whole(tmp_path / name)
        assert "\n" not in str(refused.value)
