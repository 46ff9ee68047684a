"""Weights by any path, in every command that takes some; and what none of them takes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model import VideoMamba, create_model, save_model
from model.convert import convert
from pipeline.checkpoint import layout
from pipeline.checkpoint.source import locate, read_tensors, split_choice
from pipeline.errors import CheckpointError
from pipeline.inference.evaluate_checkpoint import evaluate_checkpoint, evaluate_weights
from pipeline.inference.export import export_weights
from pipeline.inference.trained import open_trained
from pipeline.predict import Predictor
from pipeline.training.assemble import initial_model
from tests.command_line import Vmp
from tests.pipeline.checkpoint.conftest import CLASSES, config, save
from tests.pipeline.data.conftest import write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lengths = {"train": [8] * 12, "val": [8, 5, 9]}
    return write_shards(tmp_path_factory.mktemp("data") / "shards", lengths, classes=CLASSES)


def same(first: VideoMamba, second: VideoMamba) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def kinds(run: Path, model: VideoMamba) -> dict[str, Path]:
    """The same weights as a run, a checkpoint, and files of every kind."""
    root = run.parent
    torch.save({"model": model.state_dict(), "epoch": 3}, root / "released.pth")
    convert(root / "released.pth", root / "converted.safetensors")
    convert(root / "released.pth", root / "converted.pth")
    export_weights(run, root / "exported.safetensors")
    export_weights(run, root / "exported.pth")
    files = ("released.pth", "converted.safetensors", "converted.pth")
    files += ("exported.safetensors", "exported.pth")
    return {
        "run": run,
        "last": run.with_name("run@last"),
        "checkpoint": locate(run),
        **{name: root / name for name in files},
    }


def test_every_kind_of_source_does_the_same_everywhere(
    run: Path, model: VideoMamba, shards: Path, tmp_path: Path
) -> None:
    # A released file says nothing of frames, sampling and views; these are what the run has.
    stated = [
        "data.sampling=dense",
        "data.stride=1",
        "eval.crops=1",
        "eval.clips=1",
        "data.workers=0",
    ]
    expected = evaluate_checkpoint(run, shards, stated)
    for name, source in kinds(run, model).items():
        assert same(open_trained(source).model, model), name
        assert evaluate_checkpoint(source, shards, stated) == expected, name
        assert same(initial_model(config(init_from=source)), model), name
        for suffix in (".pth", ".safetensors"):
            exported = export_weights(source, tmp_path / f"again{suffix}")
            assert same(open_trained(exported).model, model), name
            assert open_trained(exported).classes == open_trained(source).classes, name
        named = CLASSES if source.is_dir() or "exported" in name or name == "last" else ()
        assert open_trained(source).classes == named, name
        assert Predictor.load(source).classes == (named or ("class 0", "class 1", "class 2")), name


def test_best_and_last(tmp_path: Path) -> None:
    run, better, newer = tmp_path / "r", create_model(config().model), create_model(config().model)
    save(run, better, step=5, best_step=5)
    save(run, newer, step=9, best_step=5)
    assert locate(run).name == locate(tmp_path / "r@last").name == "step-00000009"
    assert locate(tmp_path / "r@best").name == "step-00000005"
    assert same(open_trained(tmp_path / "r@best").model, better)
    assert same(initial_model(config(init_from=tmp_path / "r@best")), better)
    assert same(initial_model(config(init_from=run)), newer)
    layout.delete(run / "checkpoints/step-00000005")
    with pytest.raises(CheckpointError, match=r"r@best: the checkpoint of step 5 was the best and"):
        locate(tmp_path / "r@best")


def test_a_run_whose_evaluations_chose_nothing(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run@best: no evaluation has chosen .*run@last"):
        locate(tmp_path / "run@best")
    (tmp_path / "odd@best").mkdir()
    assert split_choice(tmp_path / "odd@best") == (tmp_path / "odd@best", "last")
    assert split_choice(tmp_path / "x@worst") == (tmp_path / "x@worst", "last")


def test_the_average_is_what_a_checkpoint_gives_unless_raw(run: Path, model: VideoMamba) -> None:
    assert read_tensors(locate(run), raw=True).keys() == model.state_dict().keys()


def test_each_video_is_decoded_once_for_all_its_views(
    run: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.data.reader import ShardReader

    read: list[str] = []
    plain = ShardReader.read

    def counted(self: ShardReader, sample: Any) -> bytes:
        read.append(sample.key)
        return plain(self, sample)

    monkeypatch.setattr(ShardReader, "read", counted)
    views = ["eval.clips=4", "eval.crops=3", "data.workers=0", "eval.batch_size=2"]
    found = evaluate_weights(run, shards, views)
    assert sorted(read) == sorted(found.keys)
    assert len(read) == 3
    assert (found.evaluation.views.clips, found.evaluation.views.crops) == (4, 3)


class _Hostile:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


def _halve(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def _file(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        (root / name).write_bytes(content)
        return root / name

    return make


def _torch(name: str, content: Callable[[Path], Any]) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        torch.save(content(root), root / name)
        return root / name

    return make


def _state(**changed: Any) -> dict[str, Any]:
    return create_model(config().model.model_copy(update=changed)).state_dict()


def _nan() -> dict[str, Any]:
    return {key: value * torch.nan for key, value in _state().items()}


def _safetensors(root: Path) -> Path:
    save_model(root / "half.safetensors", create_model(config().model))
    return _halve(root / "half.safetensors")


def _run(damage: Callable[[Path], object]) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        save(root / "damaged", create_model(config().model), step=7)
        damage(root / "damaged/checkpoints/step-00000007")
        return root / "damaged"

    return make


def _deepspeed(root: Path) -> Path:
    (root / "checkpoint-3").mkdir()
    torch.save({"module": _state()}, root / "checkpoint-3/mp_rank_00_model_states.pt")
    return root / "checkpoint-3"


def _empty_directory(root: Path) -> Path:
    (root / "empty").mkdir()
    return root / "empty"


# kind -> (how it is made, what every command says, what `vmp convert` says if it is something else)
BAD: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "absent": (lambda root: root / "absent.pth", "no such file or directory", "no such weights"),
    "absent best": (lambda root: root / "r@best", "no such file or directory", "no such weights"),
    "directory": (_empty_directory, "neither a committed checkpoint nor", "a directory, not a"),
    "DeepSpeed": (_deepspeed, "give its file mp_rank_00_model_states.pt", "a directory, not a"),
    "empty file": (_file("w.pth", b""), "damaged", ""),
    "text": (_file("w.pth", b"<html>404</html>"), "damaged", ""),
    "text named safetensors": (_file("w.safetensors", b"<html>404</html>"), "damaged", ""),
    "cut short": (lambda root: _halve(_torch("w.pth", lambda _: _state())(root)), "damaged", ""),
    "safetensors cut short": (_safetensors, "damaged safetensors", ""),
    "hostile": (_torch("w.pth", lambda root: {"model": _Hostile(root / "t")}), "not loaded", ""),
    "another model": (_torch("w.pth", lambda _: {"blocks.0.attn.qkv.weight": torch.ones(3, 3)}),
                      "not a VideoMamba|do not fit the model", ""),
    "no weights": (_torch("w.pth", lambda _: {"epoch": 3}), "holds no state_dict", ""),
    "not finite": (_torch("w.pth", lambda _: _nan()), "holds NaN or infinite numbers", ""),
    "a shard cut short": (_run(lambda c: _halve(next(layout.shard_files(c)))),
                          "none of the 1 checkpoints .* is intact", "a directory, not a"),
    "never finished": (_run(lambda c: (c / layout.MARKER).unlink()),
                       "neither a committed checkpoint nor", "a directory, not a"),
}  # fmt: skip

COMMANDS: dict[str, Callable[[Path, Path, Path], list[object]]] = {
    "eval": lambda weights, shards, out: ["eval", weights, shards, "--out", out / "evaluation"],
    "predict": lambda weights, shards, out: ["predict", weights, shards / "val-000000.tar"],
    "export": lambda weights, shards, out: ["export", weights, out / "exported.pth"],
    "convert": lambda weights, shards, out: ["convert", weights, out / "converted.safetensors"],
    "compare": lambda weights, shards, out: ["compare", weights, weights, "--data", shards],
    "train": lambda weights, shards, out: ["train", *_recipe(weights, shards, out)],
    "submit": lambda weights, shards, out: ["submit", *_recipe(weights, shards, out)],
}


def _recipe(weights: Path, shards: Path, out: Path) -> list[str]:
    own = ["model.preset=videomambapro-tiny-test", "model.num_classes=3", "batch.global_size=4"]
    return ["demo", f"init_from={weights}", f"data.train={shards}", f"runs_dir={out}/runs", *own]


@pytest.mark.parametrize("kind", BAD)
def test_bad_weights_are_one_line_in_every_command(
    kind: str,
    tmp_path: Path,
    shards: Path,
    vmp: Vmp,
) -> None:
    make, message, of_convert = BAD[kind]
    weights = make(tmp_path)
    (tmp_path / "out").mkdir()
    for command, arguments in COMMANDS.items():
        wanted = of_convert if command == "convert" and of_convert else message
        status, out, err = vmp(*arguments(weights, shards, tmp_path / "out"))
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (status, out, len(lines)) == (2, "", 1), (command, out, err)
        # A checkpoint that is passed over is reported before the error.
        assert all("falling back" in line for line in err.splitlines()[:-1]), (command, err)
        assert weights.name.partition("@")[0] in lines[0], (command, err)
        assert re.search(wanted, lines[0]), (command, err)
        assert not list((tmp_path / "out").iterdir()), command
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("command", "changed", "message"),
    [
        ("train", {"depth": 3}, "the weights do not fit the model"),
        ("submit", {"embed_dim": 48}, "'cls_token' cannot be fitted"),
        ("train", {"layout": "separate"}, "fitting them to layout 'shared' discards"),
        ("eval", {"num_classes": 5}, "knows 5 classes, .* has 3: it was trained on other data"),
        ("compare", {"num_classes": 5}, "knows 5 classes, .* has 3"),
    ],
)
def test_weights_of_another_model_or_data_are_one_line(
    command: str,
    changed: dict[str, Any],
    message: str,
    tmp_path: Path,
    shards: Path,
    vmp: Vmp,
) -> None:
    weights = _torch("w.pth", lambda _: _state(**changed))(tmp_path)
    arguments = COMMANDS[command](weights, shards, tmp_path / "out")
    status, out, err = vmp(*arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert re.search(message, err), err
    assert not (tmp_path / "out").exists()
