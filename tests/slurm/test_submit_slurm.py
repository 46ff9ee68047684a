"""Training through a real SLURM: 2 nodes x 1 rank, the bits of a local run, whatever happens."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from pipeline.commands import watch as jobs
from slurm import queue
from tests import runs
from tests.slurm import drive
from tests.slurm.drive import STEPS, assert_same_run, job_id, show_job, wait_until

pytestmark = [pytest.mark.dist, pytest.mark.slow]


def arguments(root: Path, shards: Path, name: str) -> list[str]:
    return drive.arguments(root, shards, name, STEPS)


def is_training(run_dir: Path) -> bool:
    return drive.steps_done(run_dir) > 3


def test_two_nodes_end_with_the_bits_of_two_local_ranks(
    slurm: Path, root: Path, glyph_shards: Path, undisturbed: Path
) -> None:
    output = runs.run("submit", *arguments(root, glyph_shards, "two-nodes"))

    assert f"submitted: job {job_id(root / 'two-nodes')} (slurm)" in output
    assert show_job(root / "two-nodes")["NumNodes"] == "2"
    assert_same_run(undisturbed, root / "two-nodes", STEPS)


def test_a_signalled_run_is_requeued_once_and_ends_with_the_same_bits(
    slurm: Path, root: Path, glyph_shards: Path, undisturbed: Path
) -> None:
    """Sends USR2; SIGTERM is one of the faults of test_soak.py."""
    run_dir = root / "preempted"
    process = runs.start("submit", *arguments(root, glyph_shards, run_dir.name))
    wait_until(lambda: is_training(run_dir), process)
    subprocess.run(["scancel", "--signal=USR2", job_id(run_dir)], check=True)
    output = drive.finish(process, run_dir)

    assert "stopping at step" in output
    assert output.count("goes back into the queue") == 1
    assert "resuming from" in output
    assert show_job(run_dir)["Restarts"] == "1"
    assert_same_run(undisturbed, run_dir, STEPS)


def test_a_cancelled_run_stays_down_and_the_same_command_goes_on(
    slurm: Path, root: Path, glyph_shards: Path, undisturbed: Path
) -> None:
    run_dir = root / "cancelled"
    then = f"jobs list --runs {root}"
    command = [*arguments(root, glyph_shards, run_dir.name), "--then", then]
    process = runs.start("submit", *command)
    wait_until(lambda: is_training(run_dir), process)
    assert "saves a checkpoint and ends" in jobs.cancel(run_dir, save=True)
    output = drive.finish(process, run_dir, expect=75)
    assert "is not requeued: it was asked to stay down" in output
    assert show_job(run_dir)["Restarts"] == "0"
    listed = runs.run("jobs", "list", "--runs", str(root))
    (line,) = [line for line in listed.splitlines() if line.startswith("cancelled ")]
    assert line.split()[1:3] == ["stopped", f"slurm:{job_id(run_dir)}"]
    assert "step-000" in line
    assert "cancelled: signal SIGTERM" in line
    assert "stopping at step" in runs.run("jobs", "logs", run_dir.name, "--runs", str(root))
    twice = runs.run("jobs", "cancel", run_dir.name, "--runs", str(root), expect=2)
    assert f"job {job_id(run_dir)} has ended already" in twice

    resumed = runs.run("jobs", "resume", run_dir.name, "--runs", str(root))
    first, second = (line for line in resumed.splitlines() if line.startswith("submitted: job"))
    assert f"job {job_id(run_dir)} (slurm), run {run_dir} goes on from step-000" in first
    follower = second.split()[2]
    runs.run("submit", *command)  # finds the resumed job and waits for it

    assert_same_run(undisturbed, run_dir, STEPS)
    assert drive.wait_for_job(follower) == ["COMPLETED"]
    assert "finished" in (run_dir / "logs" / f"{follower}_0_log.out").read_text()
    finished = runs.run("jobs", "resume", run_dir.name, "--runs", str(root), expect=2)
    assert "is finished" in finished


def test_a_run_that_waits_in_the_queue_is_not_submitted_again(
    slurm: Path, root: Path, glyph_shards: Path, tmp_path: Path
) -> None:
    held = tmp_path / "held.yaml"
    held.write_text("extra: {hold: true}\n")
    command = [*arguments(root, glyph_shards, "held"), "--no-follow", "--profile", str(held)]
    runs.run("submit", *command)
    first = job_id(root / "held")

    assert f"already submitted: job {first}" in runs.run("submit", *command)

    assert job_id(root / "held") == first
    queue.save_and_stop(first)
    assert queue.states(first) == ["CANCELLED"]


def test_dry_run_prints_what_sbatch_would_get_and_writes_nothing(
    slurm: Path, root: Path, glyph_shards: Path, tmp_path: Path
) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text("partition: main\ntime_min: 60\ngrace_s: 90\nextra: {comment: hello}\n")
    command = [*arguments(root, glyph_shards, "dry"), "--dry-run", "--profile", str(profile)]
    text = runs.run("submit", *command)
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    for option in ("partition=main", "nodes=2", "time=60", "signal=USR2@90", "comment=hello"):
        assert f"#SBATCH --{option}" in lines
    assert "--cpus-per-task=2 --open-mode=append --kill-on-bad-exit=1" in text
    assert text.rstrip().endswith(f"-m slurm.supervise $? {root / 'dry'}")
    assert not (root / "dry").exists()
    checked = subprocess.run(["sbatch", "--test-only"], input=text, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--profile", "{tmp}/nowhere.yaml"], "nowhere.yaml: cannot be read: No such file"),
        (["--profile", "{tmp}/wrong.yaml"], "partition 'nowhere': SLURM knows no such partition"),
        (["--nodes", "4"], "--nodes 4: the default partition has 3"),
        (["data.workers=3", "--profile", "{tmp}/few.yaml"], "data.workers=3 loader processes"),
        (["--then", "eval 'x"], "command 'eval 'x': No closing quotation"),
        (["runs_dir=/proc/nowhere"], "run directory /proc/nowhere/refused: cannot be written"),
    ],
)
def test_what_cannot_be_submitted_is_one_line_and_status_2(
    slurm: Path, root: Path, glyph_shards: Path, tmp_path: Path, change: list[str], message: str
) -> None:
    (tmp_path / "wrong.yaml").write_text("partition: nowhere\n")
    (tmp_path / "few.yaml").write_text("cpus_per_task: 2\n")
    changes = [text.replace("{tmp}", str(tmp_path)) for text in change]
    output = runs.run("submit", *arguments(root, glyph_shards, "refused"), *changes, expect=2)
    assert message in output
    assert output.strip().splitlines()[-1].startswith("error: ")
    assert len(output.strip().splitlines()) == 1
    assert not (root / "refused" / "job.json").exists()


def test_a_grace_period_shorter_than_the_measured_save_is_refused(
    slurm: Path, root: Path, glyph_shards: Path
) -> None:
    run_dir = root / "slow-saver"
    run_dir.mkdir()
    row = {"step": 9, "kind": "train", "time": 0.0, "save_s": 90.0, "step_s_p95": 4.5}
    (run_dir / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    output = runs.run("submit", *arguments(root, glyph_shards, run_dir.name), expect=2)
    assert "grace_s=120" in output
    assert "give the profile grace_s: 189 or more" in output
    assert not (run_dir / "job.json").exists()


def test_a_missing_recipe_is_one_line_and_status_2(slurm: Path) -> None:
    output = runs.run("submit", "nowhere", "--cluster", "slurm", expect=2)
    assert output.startswith("error: ")
    assert len(output.strip().splitlines()) == 1
