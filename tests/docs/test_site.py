"""The documentation as a site: every link, anchor and name of the API resolves."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, require


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    require(importlib.util.find_spec("mkdocs") is not None, "mkdocs (make venv EXTRAS=dev,docs)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]

    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert built.returncode == 0, built.stderr
    page = (tmp_path / "api/index.html").read_text()
    assert 'id="model.create_model"' in page
    assert "loss, DeepSpeed ZeRO, checkpoints" in (tmp_path / "index.html").read_text()
    assert (tmp_path / "CHANGELOG/index.html").exists()
