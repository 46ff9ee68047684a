from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model import create_model
from model.config import PRESETS, resolve_config
from model.flops import (
    SCAN_CHUNK,
    SCAN_FLOPS_PER_STATE,
    activation_bytes,
    count_parameters,
    forward_flops,
    published_flops,
    training_flops,
)
from model.scan import chunked
from model.scan.cuda import plan
from model.scan.native import library
from tests.conftest import require

KINDS: list[dict[str, Any]] = [
    {"layout": "shared"},
    {"layout": "separate"},
    {"layout": "shared", "direction": "forward"},
]


@pytest.mark.parametrize(("frames", "giga"), [(8, 102), (16, 203), (32, 406), (64, 813)])
def test_published_flops_of_the_medium_model(frames: int, giga: int) -> None:
    config = resolve_config("videomambapro-m", num_frames=frames)
    assert round(published_flops(config) / 1e9) == giga


@pytest.mark.parametrize(("size", "giga_per_frame"), [("ti", 1.1), ("s", 4.3), ("m", 12.7)])
def test_published_flops_per_frame(size: str, giga_per_frame: float) -> None:
    config = resolve_config(f"videomambapro-{size}", num_frames=16)
    assert round(published_flops(config) / 16e9, 1) == giga_per_frame


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_parameters_are_counted_to_the_unit(preset: str, kind: dict[str, Any]) -> None:
    config = resolve_config(preset, **kind, num_classes=7, tubelet_size=2)
    with torch.device("meta"):
        net = create_model(config)
    assert count_parameters(config) == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_forward_flops_are_what_torch_counts_plus_the_scan(kind: dict[str, Any]) -> None:
    config = resolve_config("videomambapro-tiny-test", **kind)
    net = create_model(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 3, 4, 16, 16))
    tokens, inner = config.num_tokens, config.inner_dim
    directions = 1 if config.direction == "forward" else 2
    # The counter sees matrix products; a fused convolution and the scan are opaque to it.
    products = sum(n for op_, n in counter.get_flop_counts()["Global"].items() if "mm" in str(op_))
    convolution = 2 * config.d_conv * inner * (2 if config.layout == "separate" else 1)
    scan = directions * (SCAN_FLOPS_PER_STATE * config.d_state + 2) * inner + inner
    assert products > 0
    assert forward_flops(config) == products + config.depth * tokens * (convolution + scan)
    assert training_flops(config) == 3 * forward_flops(config)


def test_the_scan_keeps_a_state_as_often_as_the_estimate_says() -> None:
    assert plan.CHUNK == SCAN_CHUNK


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("setting", ["none", "full", 2])
def test_activation_bytes_agree_with_what_autograd_keeps(
    kind: dict[str, Any], setting: Any
) -> None:
    # The estimate is of the fused convolution and norm, which a GPU has too.
    require(library.is_available(), "a C++ compiler (apt-get install g++)")
    config = resolve_config(
        "videomambapro-nano",
        **kind,
        depth=6,
        d_state=16,
        scan_backend="chunked",
        activation_checkpointing=setting,
    )
    net = create_model(config)
    owned = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in owned:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    batch = 4
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net(torch.randn(batch, 3, 8, 32, 32)).sum()
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / batch
    estimated = activation_bytes(config, compute_bytes=4, scan_chunk=chunked.CHUNK)
    if setting != "none":
        # The estimate also has the block that backward recomputes, not yet there.
        depths = [resolve_config(config, depth=d, activation_checkpointing="none") for d in (1, 2)]
        one, two = (activation_bytes(c, compute_bytes=4, scan_chunk=chunked.CHUNK) for c in depths)
        estimated -= two - one
    assert measured == pytest.approx(estimated, rel=0.15)
