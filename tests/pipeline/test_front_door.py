"""Commands that do not train do not import torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# One process for all: a start is what costs here, and torch once imported would stay.
_COMMANDS = """
import io, sys
from contextlib import redirect_stdout

import pipeline.config, pipeline.rundir, pipeline.commands.jobs
import model.config, model.flops
from pipeline.cli import main

def vmp(*arguments):
    sys.argv = ["vmp", *arguments]
    try:
        with redirect_stdout(io.StringIO()) as out:
            main()
    except SystemExit as end:
        assert end.code in (None, 0), (arguments, end.code)
    heavy = sorted({"torch", "deepspeed", "mlflow"} & sys.modules.keys())
    print(f"{' '.join(arguments)}: {heavy}, {len(out.getvalue())} characters")

shards, runs = sys.argv[1:]
assert "torch" not in sys.modules
vmp("--version")
vmp("--help")
vmp("train", "demo", "--print-config")
vmp("config", "demo", "optim")
vmp("plan", "demo", "--world", "2", "--samples", "6000")
vmp("submit", "demo", f"runs_dir={runs}", "--cluster", "slurm", "--gpus-per-node", "0", "--dry-run")
vmp("jobs", "list", "--runs", runs)
vmp("jobs", "nodes", "--runs", runs)
vmp("data", "verify", shards)
vmp("data", "report", shards)
"""


@pytest.mark.slow
def test_commands_that_do_not_train_leave_torch_alone(tmp_path: Path, glyph_shards: Path) -> None:
    runs = tmp_path / "runs"
    (runs / "old/checkpoints").mkdir(parents=True)
    (runs / "old/config.yaml").write_text("name: old\n")
    bare = {**os.environ, "PATH": str(tmp_path)}  # no SLURM, as on a laptop

    ran = subprocess.run(
        [sys.executable, "-c", _COMMANDS, str(glyph_shards), str(runs)],
        capture_output=True,
        text=True,
        env=bare,
    )

    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == 10
    assert [line for line in lines if ": []," not in line or " 0 characters" in line] == [
        "jobs nodes --runs " + str(runs) + ": [], 0 characters"
    ]
    assert "not checked, as this machine has no SLURM" in ran.stderr
