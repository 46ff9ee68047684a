"""The sdist builds the wheel, and the wheel works in an environment that knows no checkout."""

from __future__ import annotations

import re
import shutil
import site
import subprocess
import sys
import tomllib
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

from slurm.snapshot import PACKAGES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NOT_INSTALLED = {"slurm/container/Dockerfile", "slurm/container/videomambapro.def"}
"""Files below the packages that serve a checkout only."""


def sources() -> set[str]:
    """Every file of our packages in the checkout, compiled ones apart."""
    found = (path for package in PACKAGES for path in (ROOT / package).rglob("*"))
    files = {path for path in found if path.is_file() and "__pycache__" not in path.parts}
    return {str(path.relative_to(ROOT)) for path in files if path.suffix not in (".so", ".pyc")}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip builds from the sdist of a copy of the checkout, without the network."""
    place = tmp_path_factory.mktemp("distribution")
    source, out = place / "source", place / "out"
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / package, source / package, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    out.mkdir()
    build = "import sys; from setuptools import build_meta as b; print(b.build_sdist(sys.argv[1]))"
    command = [sys.executable, "-c", build, str(out)]
    made = subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)
    sdist = out / made.stdout.splitlines()[-1]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(out)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(sdist)], check=True)
    (found,) = out.glob("*.whl")
    return found


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert files == sources() - NOT_INSTALLED
    kinds = {Path(name).suffix for name in files}
    assert {".yaml", ".cu", ".cuh", ".cpp", ".hpp", ".html", ".typed", ".py"} <= kinds


def test_what_pipx_and_pip_read_in_it(wheel: Path, project: dict[str, Any]) -> None:
    about = metadata(wheel)
    assert about["Version"] == project["version"]
    assert about["Requires-Python"] is not None
    required = [str(line) for line in about.get_all("Requires-Dist", [])]
    plain = {line.partition(";")[0].strip() for line in required if "extra ==" not in line}
    assert {re.split(r"[<>=]", line)[0] for line in plain} == {
        re.split(r"[<>=]", line)[0] for line in project["dependencies"]
    }
    assert set(about.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])
    assert about["License-Expression"] == "Apache-2.0"
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert archive.read(name).decode().split() == [
            "[console_scripts]",
            "vmp",
            "=",
            "videomambapro.command:main",
        ]


def test_the_version_stands_in_one_place(project: dict[str, Any]) -> None:
    version = str(project["version"])
    released = re.findall(r"^## (\d+\.\d+\.\d+) - ", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert released[0] == version
    quoted = re.compile(rf"[\"']{re.escape(version)}[\"']")
    texts = {name: (ROOT / name).read_text() for name in sources() if name.endswith(".py")}
    assert [name for name, text in texts.items() if quoted.search(text)] == []


def test_it_works_where_no_checkout_is(wheel: Path, tmp_path: Path) -> None:
    """A virtual environment of its own; only the packages of others come from this one."""
    home = tmp_path / "environment"
    venv.create(home, with_pip=False)
    (own,) = (home / "lib").glob("python*/site-packages")
    # A folder named in a .pth file does not have its own .pth files read, so the editable
    # installation of the checkout stays invisible.
    (own / "others.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index"]
    options = ["--no-deps", "--ignore-installed", "--disable-pip-version-check"]
    subprocess.run([*pip, *options, str(wheel)], check=True, capture_output=True)
    here = tmp_path / "elsewhere"
    here.mkdir()

    def run(*command: str) -> str:
        ran = subprocess.run(command, cwd=here, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    vmp = str(home / "bin" / "vmp")
    where = "import pipeline, model.scan, videomambapro as v; print(pipeline.__file__, v.__file__)"
    assert {Path(path).parents[1] for path in run(str(python), "-c", where).split()} == {own}
    assert run(vmp, "--version").split()[-1] == metadata(wheel)["Version"]
    assert "ZeRO" in run(vmp, "plan", "k400_m16_f16", "--world", "8", "--samples", "240000")
    assert list(here.iterdir()) == []
