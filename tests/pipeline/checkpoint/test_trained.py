"""A checkpoint outside its run is evaluated, used to predict, or used to start another run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import VideoMamba, WeightsError, create_model, from_pretrained, save_model
from pipeline.checkpoint import layout
from pipeline.checkpoint.source import locate
from pipeline.checkpoint.trained import checkpoint_config
from pipeline.errors import CheckpointError, ConfigError
from pipeline.inference.evaluate_checkpoint import evaluate_checkpoint
from pipeline.inference.export import export_weights
from pipeline.inference.exported import Card, write_exported
from pipeline.inference.trained import open_trained
from pipeline.predict import Predictor
from pipeline.training.assemble import initial_model
from tests.pipeline.checkpoint.conftest import CLASSES, config
from tests.pipeline.data.conftest import write_shards


@pytest.mark.parametrize("num_classes", [3, 5])
def test_a_run_starts_from_another_as_from_its_exported_weights(
    run: Path, model: VideoMamba, tmp_path: Path, num_classes: int
) -> None:
    save_model(tmp_path / "exported.safetensors", model)
    wanted = config(num_classes)
    torch.manual_seed(0)
    exported = from_pretrained(tmp_path / "exported.safetensors", config=wanted.model)

    for source in (run, locate(run)):
        torch.manual_seed(0)  # of the fresh head
        started = initial_model(config(num_classes, init_from=source))
        for name, tensor in exported.state_dict().items():
            assert torch.equal(started.state_dict()[name], tensor), name


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_an_exported_file_does_what_its_run_does(
    run: Path, model: VideoMamba, tmp_path: Path, suffix: str
) -> None:
    out = export_weights(run, tmp_path / f"given{suffix}")
    shards = write_shards(tmp_path / "shards", {"val": [8]}, classes=CLASSES)

    own, given = Predictor.load(run), Predictor.load(out)
    assert given.classes == CLASSES
    for name, tensor in own.model.state_dict().items():
        assert torch.equal(given.model.state_dict()[name], tensor), name
    for field in ("sampling", "stride", "mean", "std"):
        assert getattr(given.config.data, field) == getattr(own.config.data, field)
    assert given.config.model == own.config.model
    assert evaluate_checkpoint(out, shards) == evaluate_checkpoint(run, shards)
    started = initial_model(config(init_from=out))
    for name, tensor in model.state_dict().items():
        assert torch.equal(started.state_dict()[name], tensor), name
    content = out.read_bytes()
    assert str(config().data.train).encode() not in content  # it leaves the house


def test_the_views_of_an_exported_file_are_those_of_its_run(run: Path, tmp_path: Path) -> None:
    checkpoint = locate(run)
    (checkpoint / layout.CONFIG_FILE).write_text(
        config(
            **{
                "eval.clips": 2,
                "eval.crops": 3,
                "data.sampling": "tsn",
                "engine.precision": "bf16",
            }
        ).to_yaml()
    )
    card = Card.of(checkpoint_config(checkpoint), CLASSES)
    write_exported(tmp_path / "x.safetensors", create_model(config().model), card)
    used = open_trained(tmp_path / "x.safetensors").config
    assert (used.eval.clips, used.eval.crops, used.data.sampling) == (2, 3, "tsn")
    assert used.engine.precision == "bf16"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.ckpt", "x.ckpt: cannot be written; choose .safetensors, .pth, .pt2, .onnx, or a name "),
        ("x.tar.gz", "x.tar.gz: cannot be written; choose"),
    ],
)
def test_an_export_is_what_its_suffix_says_or_is_refused(
    run: Path, tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        export_weights(run, tmp_path / name)
    assert message in str(refused.value)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"videomambapro": "{"}, "videomambapro metadata: content: Invalid JSON"),
        ({"videomambapro": "{}"}, "videomambapro metadata: name: Field required"),
    ],
)
def test_weights_without_a_usable_card_are_one_line(
    model: VideoMamba, tmp_path: Path, metadata: dict[str, str], message: str
) -> None:
    for suffix in (".safetensors", ".pth"):
        path = tmp_path / f"x{suffix}"
        save_model(path, model, metadata)
        with pytest.raises(ConfigError) as refused:
            Predictor.load(path)
        assert message in str(refused.value)
        assert "\n" not in str(refused.value)


def test_exported_weights_stay_of_their_model_and_are_of_one_kind(
    run: Path, tmp_path: Path
) -> None:
    out = export_weights(run, tmp_path / "x.pth")
    shards = write_shards(tmp_path / "shards", {"val": [8]}, classes=CLASSES)
    assert open_trained(out, ["model.scan_backend=reference"]).model.config.scan_backend == (
        "reference"
    )
    with pytest.raises(ConfigError, match=r"not of this model .*leave model\.\* as it was"):
        evaluate_checkpoint(out, shards, ["model.num_frames=8"])
    with pytest.raises(ConfigError, match="--raw is for a run or a checkpoint"):
        Predictor.load(out, raw=True)


def test_weights_that_do_not_fit_or_are_not_there_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"step-00000007: the weights do not fit.*depth 1"):
        initial_model(config(init_from=run, **{"model.depth": 1}))
    with pytest.raises(CheckpointError, match="neither a committed checkpoint nor a run"):
        initial_model(config(init_from=tmp_path))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("class0", "class2", "class1"), "knows class 1 as 'class1', .* as 'class2'"),
        (("class0", "class1"), "knows 3 classes, .* has 2"),
    ],
)
def test_shards_of_other_classes_are_not_evaluated(
    run: Path, tmp_path: Path, classes: tuple[str, ...], message: str
) -> None:
    shards = write_shards(tmp_path / "shards", {"val": [8]}, classes=classes)
    with pytest.raises(ConfigError, match=message):
        evaluate_checkpoint(run, shards)


def test_another_model_than_the_trained_one_is_refused(run: Path, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", {"val": [8]}, classes=CLASSES)
    with pytest.raises(ConfigError, match=r"not of this model .*leave model\.\* as it was"):
        evaluate_checkpoint(run, shards, ["model.embed_dim=64"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "config.yaml cannot be read: .*No such file"),
        ("a: [", "config.yaml cannot be read: while parsing"),
        ("text", "config.yaml has no sections"),
    ],
)
def test_a_checkpoint_without_its_configuration(
    run: Path, content: str | None, message: str
) -> None:
    checkpoint = locate(run)
    (checkpoint / layout.CONFIG_FILE).unlink()
    if content is not None:
        (checkpoint / layout.CONFIG_FILE).write_text(content)
    with pytest.raises(CheckpointError, match=message) as refused:
        Predictor.load(checkpoint)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"{}", b'{"files": {}}', b"[]", b"\xff", b""])
def test_a_damaged_marker_vouches_for_nothing(run: Path, content: bytes) -> None:
    checkpoint = locate(run)
    (checkpoint / layout.MARKER).write_bytes(content)
    with pytest.raises(CheckpointError, match="COMMITTED cannot be read: ") as refused:
        Predictor.load(checkpoint)
    assert "\n" not in str(refused.value)
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        Predictor.load(run)


def _commit_again(checkpoint: Path) -> None:
    """Seal changed files, as a hostile author would."""
    marker = json.loads((checkpoint / layout.MARKER).read_text())
    for name in marker["files"]:
        file = checkpoint / name
        marker["files"][name] = {"bytes": file.stat().st_size, "sha256": layout.file_sha256(file)}
    (checkpoint / layout.MARKER).write_text(json.dumps(marker))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([10**6, 10**6], r"state\.json names 1,000,000,[\d,]+ numbers, and the shards have"),
        ([2**40, 2**40], r"state\.json names [\d,]+ numbers, and the shards have"),
        ([-3, -32], r"state\.json names [\d,]+ numbers, and the shards have"),
        ([3], "is unreadable: "),
        ([3, 33], "is not complete"),
    ],
)
def test_shapes_that_the_shards_do_not_hold(run: Path, shape: list[int], message: str) -> None:
    checkpoint = locate(run)
    state = json.loads((checkpoint / layout.STATE_FILE).read_text())
    state["shapes"]["head.weight"] = shape
    (checkpoint / layout.STATE_FILE).write_text(json.dumps(state))
    _commit_again(checkpoint)
    for use in (Predictor.load, lambda run: initial_model(config(init_from=run))):
        with pytest.raises(CheckpointError, match=message) as refused:
            use(run)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(run: Path, spoilt: float) -> None:
    checkpoint = locate(run)
    (shard,) = layout.shard_files(checkpoint)
    tensors = load_file(shard)
    tensors["param|head.bias|0"][1] = spoilt
    save_file(tensors, shard)
    _commit_again(checkpoint)
    for use in (Predictor.load, lambda run: initial_model(config(init_from=run))):
        with pytest.raises(CheckpointError, match=r"head\.bias holds NaN or infinite numbers"):
            use(run)


def test_a_state_of_an_earlier_version_is_refused_in_one_line(run: Path) -> None:
    checkpoint = locate(run)
    state = json.loads((checkpoint / layout.STATE_FILE).read_text())
    state["manifest_digest"] = state.pop("data_digest")
    (checkpoint / layout.STATE_FILE).write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="data_digest: Field required") as refused:
        layout.read_state(checkpoint)
    assert "\n" not in str(refused.value)
