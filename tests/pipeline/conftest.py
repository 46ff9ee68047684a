"""Fixtures of the tests of commands."""

from __future__ import annotations

import pytest

from tests.command_line import Vmp, runner


@pytest.fixture
def vmp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Vmp:
    """Status, stdout and stderr of a command."""
    return runner(monkeypatch, capsys)
