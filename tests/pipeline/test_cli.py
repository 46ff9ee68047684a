"""`vmp` in this process: what it refuses, and what its small commands do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from data_prep.options import ShardConfig
from pipeline import cli, exits

Vmp = Callable[..., tuple[int, str, str]]


@pytest.fixture
def vmp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Vmp:
    """Status, stdout and stderr of a command."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vmp", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        status = end.value.code
        assert isinstance(status, int)
        return status, *capsys.readouterr()

    return run


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
        ("bench shard --videos nosuch", "--videos nosuch: no such directory"),
        ("bench shard --videos .", "--videos .: holds no video; expected <class>/<file>"),
    ],
)
def test_bad_input_is_one_line(
    vmp: Vmp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = vmp(*command.split())
    assert (status, err) == (2, f"error: {line}\n")


def test_cuda_without_cuda(vmp: Vmp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, _, err = vmp("bench", "scan", "--device", "cuda")
    assert status == 2
    assert err.startswith("error: --device cuda: there is no CUDA device here")


def test_what_a_model_of_options_refuses_is_one_line() -> None:
    with pytest.raises(ValidationError) as error:
        ShardConfig(format="csv", videos=Path(), out="x", fold=9)
    line = exits.user_error(error.value)
    assert line == "ShardConfig.fold: Input should be less than or equal to 3 (got 9)"
    assert exits.user_error(ValueError("a bug")) is None
