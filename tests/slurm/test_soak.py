"""A run with many random faults ends with the result of the undisturbed run."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipeline.rundir import read_attempts
from slurm import launch
from tests import runs
from tests.kills import kills
from tests.slurm import drive

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(1500)]


def kill_rank(run_dir: Path, rank: int) -> None:
    drive.ranks(run_dir)[rank].kill()


def kill_both(run_dir: Path) -> None:
    for process in drive.ranks(run_dir).values():
        process.kill()


def signal_job(run_dir: Path, name: str) -> None:
    drive.slurm("scancel", f"--signal={name}", drive.job_id(run_dir))


def requeue_from_outside(run_dir: Path) -> None:
    drive.slurm("scontrol", "requeue", drive.job_id(run_dir))


def lose_node(run_dir: Path) -> None:
    node = drive.node_of(drive.ranks(run_dir)[1])
    drive.slurm("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=soak")
    time.sleep(1)
    drive.bring_back(node)


KINDS: dict[str, Callable[[Path], None]] = {
    "kill rank 0": lambda run: kill_rank(run, 0),
    "kill rank 1": lambda run: kill_rank(run, 1),
    "kill both ranks": kill_both,
    "SIGUSR2": lambda run: signal_job(run, "USR2"),
    "SIGTERM": lambda run: signal_job(run, "TERM"),
    "requeue": requeue_from_outside,
    "node down": lose_node,
}


FAULTS = max(kills(short=0), len(KINDS))
STEPS = 20 * FAULTS


def restarts(run_dir: Path) -> int:
    return int(drive.show_job(run_dir)["Restarts"])


def test_random_faults_change_nothing(slurm: Path, tmp_path: Path, glyph_shards: Path) -> None:
    seed = random.randrange(2**32)
    print("soak seed", seed)  # shown by pytest when the test fails
    chance = random.Random(seed)
    runs.run("train", *drive.overrides(tmp_path, glyph_shards, "undisturbed", STEPS))
    profile = tmp_path / "profile.yaml"
    profile.write_text("retry: {max_faults: 100, backoff_s: 0, exclude_faulty: false}\n")
    run_dir = tmp_path / "soaked"
    command = drive.arguments(
        tmp_path, glyph_shards, run_dir.name, STEPS, checkpoint__every_steps=5
    )
    # Not followed: a pipe that nobody reads while faults are made would fill.
    runs.run("submit", "--no-follow", *command, "--profile", str(profile))
    # Each kind at least once, in any order, each a random number of steps after the last.
    faults = [*KINDS, *chance.choices([*KINDS], k=FAULTS - len(KINDS))]
    chance.shuffle(faults)
    for number, fault in enumerate(faults):
        goal = drive.steps_done(run_dir) + chance.randint(1, 15)
        wait_for_step(run_dir, goal)
        before, ranks = restarts(run_dir), list(drive.ranks(run_dir).values())
        print(f"fault {number}: {fault} at step {drive.steps_done(run_dir)}", flush=True)
        KINDS[fault](run_dir)
        deadline = time.monotonic() + 90
        while restarts(run_dir) == before:
            assert time.monotonic() < deadline, log_of(run_dir)
            time.sleep(0.1)
        # Else the next fault could meet the ranks of this attempt, which may still be going.
        assert not psutil.wait_procs(ranks, timeout=90)[1], log_of(run_dir)
    deadline = time.monotonic() + 180
    while launch.find_running(run_dir) is not None:
        assert time.monotonic() < deadline, log_of(run_dir)
        drive.hurry(run_dir)
        time.sleep(0.5)

    assert len(read_attempts(run_dir)) >= FAULTS + 1
    drive.assert_same_run(tmp_path / "undisturbed", run_dir, STEPS)
    runs.assert_one_mlflow_run(run_dir, STEPS)


def log_of(run_dir: Path) -> str:
    submission = launch.last_submission(run_dir)
    assert submission is not None
    return submission.log.read_text()[-5000:]


def wait_for_step(run_dir: Path, step: int) -> None:
    """Wait until the run trains again and has done `step`."""
    deadline = time.monotonic() + 180
    while drive.steps_done(run_dir) < step or len(drive.ranks(run_dir)) < 2:
        assert launch.find_running(run_dir) is not None, log_of(run_dir)
        assert time.monotonic() < deadline, log_of(run_dir)
        drive.hurry(run_dir)
        time.sleep(0.05)
