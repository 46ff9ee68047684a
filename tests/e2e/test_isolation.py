"""User files with the names of our modules, in the folder where `vmp` is called, do no harm."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.isolation import isolate
from tests import runs
from tests.conftest import ROOT

TRAP = """
import os, sys
with open({log!r}, "a") as log:
    log.write(f"{{__name__}} by {{sys.argv}} of {{os.getppid()}}\\n")
raise SystemExit("a file of the user's was executed")
"""
NAMES = ("model", "pipeline", "slurm", "data_prep", "videomambapro_recipe", "random", "yaml")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory full of traps, each of which records the process that imported it."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(TRAP.format(log=str(tmp_path / "executed")))
    return tmp_path


def _vmp(folder: Path, *arguments: str) -> None:
    """Run the installed script with an empty entry in PYTHONPATH, which is common."""
    script = "import sys; del sys.path[0]; from videomambapro.command import main; main()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["", str(ROOT)])}
    environment.pop("PYTHONSAFEPATH", None)
    ran = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    executed = folder / "executed"
    assert not executed.exists(), executed.read_text()
    assert ran.returncode == 0, ran.stdout


def test_sharding_imports_nothing_of_the_user(folder: Path, glyph_videos: Path) -> None:
    table = (glyph_videos / "annotations.csv").read_text().splitlines()[:5]
    (folder / "few.csv").write_text("\n".join(table) + "\n")
    options = ["--format", "csv", "--annotations", "few.csv", "--videos", str(glyph_videos)]
    _vmp(folder, "data", "shard", *options, "--out", "shards")
    assert (folder / "shards/manifest.json").is_file()


@pytest.mark.dist
@pytest.mark.parametrize(
    "command",
    [("train", "launch.ranks_per_node=2"), ("submit", "launch.ranks_per_node=1")],
    ids=["train", "submit"],
)
def test_training_imports_nothing_of_the_user(
    folder: Path, glyph_shards: Path, command: tuple[str, str]
) -> None:
    """Ranks, their loader workers, the job and its controller."""
    verb, ranks = command
    own = runs.overrides(folder / "runs", glyph_shards, "x", schedule__max_steps=1, data__workers=1)
    _vmp(folder, verb, *own, ranks)
    assert (folder / "runs/x/summary.json").is_file()


def test_every_python_that_is_started_leaves_the_working_directory_out() -> None:
    """A list that begins with sys.executable goes on with -P."""
    started = 0
    for package in ("model", "pipeline", "slurm", "data_prep"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.List) and ast.unparse(node).startswith("[sys.executable"):
                    assert ast.unparse(node.elts[1]) == "'-P'", f"{path}:{node.lineno}"
                    started += 1
    assert started > 4


def test_entries_of_the_users_own_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", "/opt/more", ".", str(tmp_path)]))
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.setattr(sys, "path", ["", "/opt/more", str(tmp_path), *sys.path])
    isolate()
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/opt/more"]
    assert os.environ["PYTHONSAFEPATH"] == "1"
    assert sys.path[0] == "/opt/more"
    assert str(tmp_path) not in sys.path
