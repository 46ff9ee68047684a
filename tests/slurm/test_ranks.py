"""Finds the rank of a task that a user starts with srun."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from slurm import ranks

SCONTROL = """#!/bin/sh
case "$2" in
  hostnames) printf 'node3\\nnode4\\n' ;;
  node) echo "NodeName=$3 NodeAddr=10.0.0.3" ;;
esac
"""


@pytest.fixture
def batch_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What SLURM sets in a batch script of four tasks, and a scontrol."""
    (tmp_path / "scontrol").write_text(SCONTROL)
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in {"JOB_ID": 7, "NTASKS": 4, "PROCID": 0, "LOCALID": 0}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))


@pytest.mark.usefixtures("batch_script")
def test_each_task_of_srun_is_a_rank_of_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    step = {"STEP_ID": 2, "STEP_NUM_TASKS": 4, "STEP_NODELIST": "node[3-4]"}
    for name, value in {**step, "PROCID": 3, "LOCALID": 1}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert ranks.of_own_step() == {
        "RANK": "3",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "10.0.0.3",
        "MASTER_PORT": str(20000 + 7 * 17 + 2),
    }


@pytest.mark.usefixtures("batch_script")
def test_a_batch_script_and_a_shell_of_one_task_are_no_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert ranks.of_own_step() == {}
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert ranks.of_own_step() == {}
