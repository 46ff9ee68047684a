"""Tests of what is submitted together: a snapshot of the code, sweeps, chains, containers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slurm import snapshot
from tests import runs
from tests.conftest import ROOT
from tests.slurm import drive

pytestmark = [pytest.mark.dist, pytest.mark.slow]

STEPS = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chains")


TRAINER = Path("pipeline", "training", "trainer.py")


def test_editing_the_checkout_does_not_change_a_queued_job(
    slurm: Path, root: Path, glyph_shards: Path, tmp_path: Path
) -> None:
    checkout = tmp_path / "checkout"
    for package in snapshot.PACKAGES:
        shutil.copytree(ROOT / package, checkout / package)
    held = tmp_path / "held.yaml"
    held.write_text("extra: {hold: true}\n")
    command = drive.arguments(root, glyph_shards, "queued", STEPS)
    vmp = [sys.executable, "-m", "pipeline.cli"]
    subprocess.run(
        [*vmp, "submit", "--no-follow", *command, "--profile", str(held)],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        check=True,
    )
    (checkout / TRAINER).write_text("raise RuntimeError('edited')\n")
    (checkout / "slurm" / "job.py").unlink()
    drive.slurm("scontrol", "release", drive.job_id(root / "queued"))

    assert drive.wait_for_job(drive.job_id(root / "queued")) == ["COMPLETED"]
    assert (root / "queued" / "summary.json").exists()
    assert "edited" not in (root / "queued" / "code" / TRAINER).read_text()


def test_a_sweep_is_one_array_of_runs(slurm: Path, root: Path, glyph_shards: Path) -> None:
    sweep = ("--sweep", "optim.lr=1e-3,2e-3", "--sweep", "seed=4")
    command = [*drive.arguments(root, glyph_shards, "swept", STEPS), *sweep, "--parallel", "2"]
    output = runs.run("submit", *command)
    names = ["swept-lr_1e-3-seed_4", "swept-lr_2e-3-seed_4"]
    array = {drive.job_id(root / name).partition("_")[0] for name in names}
    assert len(array) == 1
    for number, name in enumerate(names):
        assert f"submitted: job {array.copy().pop()}_{number} (slurm), run {root / name}" in output

    assert drive.wait_for_job(array.pop()) == ["COMPLETED", "COMPLETED"]
    first, second = (runs.final_state(root / name) for name in names)
    key = next(iter(first))
    assert not first[key]["param"].equal(second[key]["param"])
    assert all((root / name / "summary.json").exists() for name in names)


def test_shard_train_and_evaluate_as_one_chain(
    slurm: Path, root: Path, glyph_videos: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    shard = (
        f"data shard --format csv --annotations {glyph_videos}/annotations.csv "
        f"--videos {glyph_videos} --out {shards} --cluster slurm --jobs 2"
    )
    command = drive.arguments(root, shards, "chained", STEPS)
    output = runs.run(
        "submit", *command, "--first", shard, "--then", f"eval {root / 'chained'} {shards}"
    )
    jobs = [line.split()[2] for line in output.splitlines() if line.startswith("submitted: job")]
    assert len(jobs) == 3
    assert jobs[1] == drive.job_id(root / "chained")
    assert drive.wait_for_job(jobs[2]) == ["COMPLETED"]
    logs = "".join(p.read_text() for p in (root / "chained" / "logs").glob("*_log.out"))
    assert "samples: train 100, val 24" in logs
    assert "samples 24" in logs


def test_nothing_follows_a_failure(slurm: Path, root: Path, tmp_path: Path) -> None:
    command = drive.arguments(root, tmp_path / "nothing", "broken-chain", STEPS)
    output = runs.run(
        "submit", "--no-follow", *command, "--first", "data verify /nowhere", "--then", "doctor"
    )
    jobs = [line.split()[2] for line in output.splitlines() if line.startswith("submitted: job")]
    assert [drive.wait_for_job(job)[0] for job in jobs] == ["FAILED", "CANCELLED", "CANCELLED"]
    assert not (root / "broken-chain" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        ("{image: img.sqsh, mounts: [/data, /a:/b]}",
         ["--container-image=img.sqsh --container-mounts=/data,/a:/b", "python3 -u -m submitit"]),
        ("{runtime: apptainer, image: img.sif, mounts: [/data]}",
         ["apptainer exec --bind /data img.sif env PYTHONSAFEPATH=1", "python3 -u -m submitit"]),
    ],
)  # fmt: skip
def test_ranks_in_a_container_and_the_supervisor_outside(
    slurm: Path, root: Path, glyph_shards: Path, tmp_path: Path, container: str, expected: list[str]
) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text(f"container: {container}\n")
    command = drive.arguments(root, glyph_shards, "boxed", STEPS)
    text = runs.run("submit", *command, "--dry-run", "--profile", str(profile))
    srun = next(line for line in text.splitlines() if line.startswith("srun"))
    assert all(part in srun for part in expected)
    assert sys.executable not in srun
    assert f"{sys.executable} -m slurm.supervise $?" in text
