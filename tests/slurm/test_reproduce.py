"""`vmp reproduce --submit` on a real SLURM: every stage waits for those whose weights it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import runs
from tests.pipeline.commands.test_reproduce import ROW, SMALL
from tests.pipeline.data.conftest import write_shards
from tests.slurm import drive

pytestmark = [pytest.mark.dist, pytest.mark.slow]


def test_stages_are_chained_by_their_weights(slurm: Path, root: Path, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "in1k", {"train": [1] * 8, "val": [1] * 2})
    held = tmp_path / "held.yaml"
    held.write_text("extra: {hold: true}\n")
    command = [ROW, *SMALL, "--runs", str(root), "--shards", str(shards), "--gpus-per-node", "0"]
    runs.run("reproduce", *command, "--submit", "--cluster", "slurm", "--profile", str(held))
    first, second = (drive.job_id(root / f"in1k_t16_{px}") for px in (224, 448))
    waits = drive.slurm("squeue", "-h", "-o", "%E", "-j", second).strip()
    assert waits.startswith(f"afterok:{first}")
    drive.slurm("scancel", first, second)
