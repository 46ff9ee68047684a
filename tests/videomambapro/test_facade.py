"""The Python API in a user's script, also beside files of the same names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import videomambapro
from tests.conftest import ROOT


def _python(folder: Path, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    """`python -c`, which searches the folder that it stands in first."""
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": ""},
        capture_output=True,
        text=True,
    )


def test_every_name_of_the_facade_is_there() -> None:
    for name in videomambapro.__all__:
        assert getattr(videomambapro, name).__name__ == name
    assert set(dir(videomambapro)) == set(videomambapro.__all__)
    with pytest.raises(AttributeError, match="no attribute 'create_modle'"):
        videomambapro.create_modle  # noqa: B018


def test_importing_the_facade_imports_nothing_else() -> None:
    code = "import sys, videomambapro; assert not {'model', 'pipeline', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("package", ["model", "pipeline", "data_prep", "slurm"])
def test_a_file_that_hides_a_package_is_named_and_not_run(tmp_path: Path, package: str) -> None:
    (tmp_path / f"{package}.py").write_text("open('executed', 'w')\n")
    script = "from videomambapro import ModelConfig; print(ModelConfig().depth)"
    ran = _python(tmp_path, script)
    assert ran.returncode == 1
    said = ran.stderr.strip().splitlines()[-1]
    assert said.startswith(f"ImportError: videomambapro: the package '{package}' is {tmp_path}")
    assert "rename it, or start Python with -P" in said
    assert not (tmp_path / "executed").exists()
    assert _python(tmp_path, script, "-P").stdout == "32\n"


def test_a_folder_that_hides_a_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/__init__.py").touch()
    ran = _python(tmp_path, "from videomambapro import ModelConfig")
    assert f"the package 'model' is {tmp_path / 'model/__init__.py'}, not" in ran.stderr
