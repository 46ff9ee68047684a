"""The published code's outputs and gradients, reproduced (files described in docs/model.md)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model import VideoMamba, create_model

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-4

PUBLISHED: dict[str, dict[str, Any]] = {
    "videomamba_0": {"layout": "separate", "mask_backward": False, "initial_state": "zero"},
    # The authors' code scans the raw half of the projection.
    "videomambapro_v1_0": {"value": "raw"},
}


def _load(name: str, **options: Any) -> tuple[VideoMamba, dict[str, Tensor]]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        config = json.loads(str(file["config"]))
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "config"}
    config["tubelet_size"] = config.pop("kernel_size")
    net = create_model("videomambapro-m", **config, **PUBLISHED[name], **options)
    net.load_state_dict(
        {
            key.removeprefix("param/"): value
            for key, value in arrays.items()
            if key.startswith("param/")
        }
    )
    return net.eval(), arrays


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    scale = expected.abs().max().item()
    return (actual - expected).abs().max().item() / (scale or 1.0)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_logits_loss_and_every_gradient_match_the_published_code(name: str, backend: str) -> None:
    net, arrays = _load(name, scan_backend=backend)
    logits = net(arrays["input"])
    cotangent = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    loss = (logits * cotangent).sum()
    loss.backward()

    assert _relative_error(logits, arrays["logits"]) < TOLERANCE
    assert _relative_error(loss, arrays["loss"]) < TOLERANCE
    gradients = {key[5:] for key in arrays if key.startswith("grad/")}
    assert gradients == {key for key, _ in net.named_parameters()}
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None
        assert _relative_error(parameter.grad, arrays[f"grad/{key}"]) < TOLERANCE, key


@pytest.mark.parametrize("change", ["value", "mask_backward", "initial_state"])
def test_the_golden_file_tells_every_option_of_the_method_apart(change: str) -> None:
    net, arrays = _load("videomambapro_v1_0")
    other = {"value": "conv", "mask_backward": False, "initial_state": "zero"}[change]
    changed = create_model(net.config, **{change: other}).eval()
    changed.load_state_dict(net.state_dict())

    assert _relative_error(changed(arrays["input"]), arrays["logits"]) > 3 * TOLERANCE
