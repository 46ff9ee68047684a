"""`vmp` in this process: what it refuses, and what its small commands do."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from pydantic import ValidationError

from data_prep.options import ShardConfig
from model import create_model, load_model, save_model
from pipeline import cli, exits
from pipeline.commands import planning, weights
from pipeline.commands.arguments import complete_recipe
from pipeline.config import load_config
from pipeline.predict import Predictor
from tests.command_line import Vmp
from tests.data_prep.torture_files import CASES


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("data synth --out x --train -1", "--train"),
        ("data synth --out x --val -1", "--val"),
        ("data synth --out x --seed -1", "--seed"),
        ("data shard --format csv --videos x --out x --fold 9", "--fold"),
        ("data shard --format csv --videos x --out x --clips-per-shard 0", "--clips-per-shard"),
        ("data shard --format csv --videos x --out x --max-missing 5", "--max-missing"),
        ("data cache x --out x --frames 0", "--frames"),
        ("data cache x --out x --quality 500", "--quality"),
        ("bench scan --frames 0", "--frames"),
        ("bench scan --dtype foo", "--dtype"),
        ("bench rows --size xx", "--size"),
        ("bench loader --rounds 0", "--rounds"),
        ("bench order --samples 0", "--samples"),
        ("bench plan --videos 0", "--videos"),
        ("ui --port 99999", "--port"),
    ],
)
def test_an_option_out_of_range_is_named(vmp: Vmp, command: str, option: str) -> None:
    status, out, err = vmp(*command.split())
    assert (status, out) == (2, "")
    assert f"Invalid value for '{option}'" in err


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("bench scan --size xx", "--size xx: unknown; one of ti, s, m"),
        ("bench gpu --parts right,all", "--parts all: unknown; some of right,clean,fast,step"),
        ("bench gpu --parts ,", "--parts: names no part; some of right,clean,fast,step"),
        ("bench shard --videos nosuch", "--videos nosuch: no such directory"),
        ("bench shard --videos .", "--videos .: holds no video; expected <class>/<file>"),
        (
            "plan demo --samples 3",
            "batch.global_size=32 is more than the 3 clips of an epoch: set it to 3 or less",
        ),
    ],
)
def test_bad_input_is_one_line(
    vmp: Vmp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = vmp(*command.split())
    assert (status, err) == (2, f"error: {line}\n")


def test_cuda_without_cuda(vmp: Vmp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for command in ("scan", "rows"):
        status, _, err = vmp("bench", command, "--device", "cuda")
        assert status == 2
        assert err.startswith("error: --device cuda: there is no CUDA device here")
    monkeypatch.chdir(tmp_path)
    status, _, err = vmp("bench", "gpu")
    needed = "it needs an NVIDIA GPU and a CUDA build of torch"
    assert (status, err) == (2, f"error: vmp bench gpu cannot run here: {needed}\n")
    assert not list(tmp_path.iterdir())


def test_what_a_model_of_options_refuses_is_one_line() -> None:
    with pytest.raises(ValidationError) as error:
        ShardConfig(format="csv", videos=Path(), out="x", fold=9)
    line = exits.user_error(error.value)
    assert line == "ShardConfig.fold: Input should be less than or equal to 3 (got 9)"
    assert exits.user_error(ValueError("a bug")) is None


def test_convert_applies_its_options_without_a_preset(vmp: Vmp, tmp_path: Path) -> None:
    save_model(tmp_path / "a.safetensors", create_model("videomambapro-tiny-test"))
    files = (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    weights.convert(*files, num_classes=9, num_frames=8)
    config = load_model(files[1]).config
    assert (config.num_classes, config.num_frames) == (9, 8)


def test_convert_refuses_hostile_weights_in_one_line(vmp: Vmp, tmp_path: Path) -> None:
    state = create_model("videomambapro-tiny-test").state_dict()
    torch.save(state | {"head.weight": torch.zeros(1).expand(10**12, 32)}, tmp_path / "w.pth")
    status, out, err = vmp("convert", tmp_path / "w.pth", tmp_path / "out.safetensors")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "'head.weight' claims 32,000,000,000,000 numbers and stores fewer" in err
    assert not (tmp_path / "out.safetensors").exists()


def test_plan_counts_steps_and_node_hours(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["schedule.epochs=10", "data.train=nowhere"]
    planning.plan("demo", options, world=32, gpus_per_node=8, samples=6000, step_s=3.6)
    out = capsys.readouterr().out
    assert "steps per epoch      187 (6,000 clips)" in out
    assert "steps                1,870 (10 epochs)" in out
    assert "node-hours           7.5 (1.9 h on 4 nodes;" in out
    planning.plan("demo", options, world=32, gpus_per_node=8, samples=None, step_s=None)
    assert "unknown, give --samples: nowhere: no manifest.json" in capsys.readouterr().out


def test_predict_goes_on_after_a_bad_video(
    vmp: Vmp, tmp_path: Path, glyph_videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config("demo", ["model.preset=videomambapro-tiny-test"])
    model = create_model(config.model).eval()
    classes = tuple(f"class{number}" for number in range(config.model.num_classes))
    predictor = Predictor(config, model, classes, torch.device("cpu"))
    monkeypatch.setattr(Predictor, "load", lambda *_, **__: predictor)
    changing, text = tmp_path / "changing.mp4", tmp_path / "text.mp4"
    next(case for case in CASES if case.name == "changes size.mp4").make(changing)
    text.write_text("not a video")
    good = glyph_videos / "val/000000.mp4"
    status, out, err = vmp("predict", tmp_path, changing, text, good)
    assert status == 2
    assert [line.partition(": ")[0] for line in out.splitlines()] == [str(good)]
    first, second = err.splitlines()
    assert first.startswith(f"error: {changing}: cannot be used: resolution_change: from 96x80 to ")
    assert second.startswith(f"error: {text}: cannot be used: not_video: ")


def test_the_version_is_the_one_that_is_installed(vmp: Vmp) -> None:
    status, out, _ = vmp("--version")
    assert (status, out) == (0, f"videomambapro {version('videomambapro')}\n")


def _silent(command: Any, path: str) -> list[str]:
    """Options and arguments below a command that have no help text."""
    own = [f"{path} {p.name}" for p in command.params if not getattr(p, "help", None)]
    children = getattr(command, "commands", {})
    return own + [
        found for name, child in children.items() for found in _silent(child, f"{path} {name}")
    ]


def test_every_option_and_argument_has_help() -> None:
    assert _silent(typer.main.get_command(cli.app), "vmp") == []


def test_the_shell_completes_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hockey.yaml").touch()
    (tmp_path / "notes.txt").touch()
    assert {"hmdb51_m16_f16", "hockey.yaml"} <= set(complete_recipe("h"))
    assert complete_recipe("hock") == ["hockey.yaml"]
    assert complete_recipe("no") == []
