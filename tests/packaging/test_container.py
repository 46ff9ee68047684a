"""The container recipes install what the Makefile installs. No image is built from them here."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from typer.main import get_command

from pipeline.cli import app
from slurm.snapshot import PACKAGES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "slurm" / "container"
DOCKER = (FOLDER / "Dockerfile").read_text()
APPTAINER = (FOLDER / "videomambapro.def").read_text()


def commands(text: str) -> list[list[str]]:
    """The shell commands of a recipe, continued lines joined and chains cut."""
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = [line.strip().removeprefix("RUN ") for line in joined.splitlines()]
    parts = [part for line in lines if not line.startswith("#") for part in line.split(" && ")]
    words = ("apt-get", "pip", "vmp", "python3")
    return [shlex.split(part) for part in parts if part.split(" ")[0] in words]


def section(name: str) -> list[str]:
    found = re.search(rf"^%{name}\n(.*?)(?=^%|\Z)", APPTAINER, re.M | re.S)
    assert found is not None
    return [line.strip() for line in found[1].splitlines() if line.strip()]


def pip_arguments(text: str) -> list[list[str]]:
    """What each pip installs, options of comfort apart."""
    comfort = {"--no-cache-dir", "--disable-pip-version-check", "--editable"}
    words = [re.sub(r"\[.*\]", "[]", word) for word in shlex.split(text)]
    found: list[list[str]] = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.endswith("pip") and following == "install":
            found.append([])
        elif found and word != "install" and word not in comfort:
            found[-1].append(word)
    return found


def test_both_recipes_run_the_same_commands() -> None:
    post = "\n".join(section("post") + section("test"))
    assert commands(DOCKER) == commands(post)
    bases = re.findall(r"^F(?:ROM|rom:) (\S+)$", DOCKER + APPTAINER, re.M)
    assert len(bases) == 2
    assert len(set(bases)) == 1
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert re.findall(r"^python:([\d.]+)-", bases[0])[0] in SpecifierSet(python)


def test_pip_installs_what_the_makefile_installs() -> None:
    lines = (ROOT / "Makefile").read_text().splitlines()
    wanted = [
        pip_arguments(line.strip().replace("$(BIN)/", "").replace("$(EXTRAS)", "dev"))[0]
        for line in lines
        if "/pip install" in line
    ]
    installed = [command for command in commands(DOCKER) if command[0] == "pip"]
    assert [pip_arguments(shlex.join(command))[0] for command in installed] == wanted
    (extra,) = re.findall(r"'\.\[(.+)\]'", DOCKER)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extra in extras["optional-dependencies"]


def test_all_of_the_code_is_copied() -> None:
    copies = (line.split()[:-1] for line in re.findall(r"^COPY (.+)$", DOCKER, re.M))
    names = {name for words in copies for name in words}
    assert names == {line.split()[0] for line in section("files")}
    assert set(PACKAGES) <= names
    assert all((ROOT / name).exists() for name in names)


@pytest.mark.parametrize("text", [DOCKER, APPTAINER], ids=["docker", "apptainer"])
def test_the_parts_in_python_and_the_commands_exist(text: str) -> None:
    known = get_command(app)
    for command in commands(text):
        if command[0] == "vmp":
            assert command[1] in {option for p in known.params for option in p.opts}
        elif command[0] == "python3":
            (imported,) = ast.parse(command[2]).body
            assert isinstance(imported, ast.Import)
            for alias in imported.names:
                assert importlib.util.find_spec(alias.name) is not None
    assert "doctor" in known.commands  # type: ignore[attr-defined]
