"""Commands printed to be copied call this installation, whatever the PATH."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.commands.program import vmp

BIN = Path(sys.prefix) / "bin"


def test_on_the_path_the_name_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{BIN}:/usr/bin")

    assert vmp() == "vmp"


def test_elsewhere_the_printed_path_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.chdir(tmp_path)

    assert vmp() != "vmp"
    shown = subprocess.run(f"{vmp()} --help", shell=True, capture_output=True, text=True)
    assert shown.returncode == 0
    assert "predict" in shown.stdout


def test_another_installation_of_that_name_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "vmp"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert vmp() != "vmp"
