"""Every form of export gives the logits of the model it was made from, where our code is absent."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model import create_model, from_pretrained
from model.containers import FOLDER_WEIGHTS
from pipeline.errors import ConfigError
from pipeline.inference.export import export_weights
from pipeline.inference.exported import Card, write_exported
from pipeline.inference.hub_folder import Evidence, write_folder
from pipeline.inference.trained import open_trained
from tests.conftest import require

CARD = Card(
    name="tiny",
    classes=("up", "down", "left"),
    sampling="tsn",
    stride=4,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.2),
    clips=2,
    crops=1,
)

# What a user without this package runs; it prints the names of forbidden modules that it loaded.
RUN_PROGRAM = """
import sys, torch
source, clips, out = sys.argv[1:]
texts = {"videomambapro": ""}
program = torch.export.load(source, extra_files=texts)
assert '"up"' in texts["videomambapro"]
logits = program.module()(torch.load(clips)).detach()
torch.save(logits, out)
print(sorted({"model", "pipeline", "videomambapro"} & sys.modules.keys()))
"""
RUN_ONNX = """
import sys, numpy as np, onnxruntime
source, clips, out = sys.argv[1:]
session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
assert '"up"' in session.get_modelmeta().custom_metadata_map["videomambapro"]
np.save(out, session.run(["logits"], {"clip": np.load(clips)})[0])
print(sorted({"model", "pipeline", "torch"} & sys.modules.keys()))
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported file of a tiny VideoMambaPro whose parameters are all far from their start."""
    torch.manual_seed(0)
    net = create_model("videomambapro-tiny-test", num_classes=3).eval()
    for parameter in net.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    write_exported(path, net, CARD)
    return path


def clips_of(weights: Path, number: int) -> torch.Tensor:
    config = from_pretrained(weights).config
    size = (number, 3, config.num_frames, config.img_size, config.img_size)
    return torch.randn(size, generator=torch.Generator().manual_seed(number))


def logits_of(weights: Path, clips: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return from_pretrained(weights)(clips)


def run_elsewhere(program: str, *arguments: Path) -> None:
    command = [sys.executable, "-P", "-c", program, *map(str, arguments)]
    ran = subprocess.run(command, cwd=arguments[0].parent, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_a_program_runs_without_this_package(weights: Path, tmp_path: Path) -> None:
    program = export_weights(weights, tmp_path / "tiny.pt2")
    clips = clips_of(weights, 3)
    torch.save(clips, tmp_path / "clips.pt")

    run_elsewhere(RUN_PROGRAM, program, tmp_path / "clips.pt", tmp_path / "logits.pt")

    found = torch.load(tmp_path / "logits.pt")
    torch.testing.assert_close(found, logits_of(weights, clips), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_onnx_runtime_gives_the_logits_without_torch(weights: Path, tmp_path: Path) -> None:
    present = importlib.util.find_spec("onnxruntime") is not None
    require(present, "onnxruntime (make venv EXTRAS=dev,onnx)")
    written = export_weights(weights, tmp_path / "tiny.onnx")
    for number in (1, 3):
        clips = clips_of(weights, number)
        np.save(tmp_path / "clips.npy", clips.numpy())
        run_elsewhere(RUN_ONNX, written, tmp_path / "clips.npy", tmp_path / "logits.npy")
        found = torch.from_numpy(np.load(tmp_path / "logits.npy"))
        torch.testing.assert_close(found, logits_of(weights, clips), rtol=0, atol=1e-4)


def test_onnx_without_its_packages_says_what_to_install(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"x\.onnx: ONNX needs the package onnx; .*EXTRAS=dev,on"):
        export_weights(weights, tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_loads_back_equal(weights: Path, tmp_path: Path) -> None:
    folder = export_weights(weights, tmp_path / "tiny")

    clips = clips_of(weights, 2)
    assert torch.equal(logits_of(folder, clips), logits_of(weights, clips))
    trained = open_trained(folder)
    assert trained.classes == CARD.classes
    assert trained.config.eval.clips == 2
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "videomambapro"
    assert config["id2label"] == {"0": "up", "1": "down", "2": "left"}
    assert config["embed_dim"] == trained.model.config.embed_dim
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
    assert preprocessor["image_mean"] == list(CARD.mean)
    assert preprocessor["num_frames"] == trained.model.config.num_frames
    assert "| top-1 on the validation split | unknown |" in (folder / "README.md").read_text()
    export_weights(weights, folder)  # a second export replaces the first


def test_the_model_card_of_a_run_states_data_and_accuracy(weights: Path, tmp_path: Path) -> None:
    net = from_pretrained(weights)
    write_folder(tmp_path / "x", net, CARD, Evidence("ab12", 40, 9, 10))
    page = (tmp_path / "x/README.md").read_text()
    assert "| digest of the training shards | ab12 |" in page
    assert "90.0% of 10 videos (95 % interval 59.6% to 98.2%)" in page  # Wilson, by hand
    assert "states that start at the first token" in page
    assert "No accuracy of the paper has been reproduced" in page


def test_other_files_are_not_overwritten(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/README.md").write_text("do not lose me")
    with pytest.raises(ConfigError, match="mine: holds other files; choose a folder that is new"):
        export_weights(weights, tmp_path / "mine")
    assert (tmp_path / "mine/README.md").read_text() == "do not lose me"
    assert not (tmp_path / "mine" / FOLDER_WEIGHTS).exists()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file: is a file without a suffix"):
        export_weights(weights, tmp_path / "file")
