"""`vmp convert --verify`: the logits of both files, and the status that they give."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model import create_model, save_model
from model.errors import WeightsError
from pipeline import exits
from pipeline.commands.convert import check_out, convert_weights, print_logits

TINY = "videomambapro-tiny-test"


def convert(source: Path, out: Path, **fields: int) -> int:
    return convert_weights(
        source,
        out,
        None,
        allow_lossy=False,
        keep_rest=False,
        ema=False,
        verify=True,
        fields=fields,
    )


@pytest.fixture
def released(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save({"model": create_model(TINY).state_dict()}, tmp_path / "released.pth")
    return tmp_path / "released.pth"


def test_equal_files(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(released, released.with_name("o.safetensors")) == exits.DONE
    out = capsys.readouterr().out
    assert "input      randn(1, 3, 4, 16, 16), seed 0\n" in out
    source, converted, equal = out.splitlines()[-3:]
    assert source.split()[1:] == converted.split()[1:]
    assert source.endswith("(5 logits)")
    assert equal == "equal      yes, bit for bit"


def test_files_that_should_be_equal_and_are_not(
    released: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = create_model(TINY)
    with torch.no_grad():
        net.head.bias += 1
    save_model(released.with_name("other.safetensors"), net)
    status = print_logits(released, released.with_name("other.safetensors"), ema=False, fields={})
    assert status == exits.FAILED
    assert "equal      no: they differ by up to " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"num_frames": 8}, "logits are not comparable: num_frames was 4 and is 8"),
        ({"num_classes": 7}, "equal      no: 5 classes became 7"),
    ],
)
def test_another_shape_is_no_failure(
    released: Path, capsys: pytest.CaptureFixture[str], fields: dict[str, int], line: str
) -> None:
    assert convert(released, released.with_name("o.safetensors"), **fields) == exits.DONE
    assert capsys.readouterr().out.splitlines()[-1] == line


def test_a_file_without_a_head_gets_the_same_fresh_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = create_model(TINY).state_dict()
    torch.save({k: v for k, v in state.items() if "head" not in k}, tmp_path / "masked.pth")
    assert convert(tmp_path / "masked.pth", tmp_path / "o.safetensors", num_classes=5) == exits.DONE
    assert capsys.readouterr().out.endswith("equal      yes, bit for bit\n")


def test_a_file_is_not_converted_onto_itself(released: Path) -> None:
    with pytest.raises(WeightsError, match="is the file to convert"):
        check_out(released, released.parent / "." / "released.pth")
