"""`vmp` in the process of the tests."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from pipeline import cli

Vmp = Callable[..., tuple[int, str, str]]
"""Takes the words of a command; returns its status, stdout and stderr."""


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Vmp:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vmp", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        status = end.value.code
        assert isinstance(status, int)
        return status, *capsys.readouterr()

    return run
