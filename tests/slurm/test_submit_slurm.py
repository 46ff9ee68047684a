"""Training through a real SLURM: 2 nodes x 1 rank, the bits of a local run, whatever happens."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.commands import watch as jobs
from pipeline.record.metrics import read_metrics
from pipeline.record.recorder import read_samples
from slurm import queue
from tests import runs

pytestmark = [pytest.mark.dist, pytest.mark.slow]

STEPS = 60
TWO_NODES = ("--cluster", "slurm", "--nodes", "2", "--gpus-per-node", "0")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slurm-runs")


@pytest.fixture(scope="module")
def local(root: Path, glyph_shards: Path) -> Path:
    """Two ranks on this machine, without SLURM and in one go."""
    runs.run("train", *runs.overrides(root, glyph_shards, "local", schedule__max_steps=STEPS))
    return root / "local"


def arguments(root: Path, shards: Path, name: str) -> list[str]:
    return [
        *TWO_NODES,
        *runs.overrides(
            root,
            shards,
            name,
            schedule__max_steps=STEPS,
            launch__ranks_per_node=1,
            checkpoint__every_steps=1000,
        ),
    ]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_training(run_dir: Path) -> bool:
    return (run_dir / "metrics.jsonl").exists() and len(read_metrics(run_dir)) > 3


def job_id(run_dir: Path) -> str:
    found: str = json.loads((run_dir / "job.json").read_text())["job_id"]
    return found


def show_job(run_dir: Path) -> dict[str, str]:
    command = ["scontrol", "-o", "show", "job", job_id(run_dir)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(field.split("=", 1) for field in answer.split() if "=" in field)


def assert_same_run(undisturbed: Path, other: Path) -> None:
    runs.assert_bitwise_equal(runs.final_state(undisturbed), runs.final_state(other))
    assert read_samples(other) == read_samples(undisturbed)
    assert [row["step"] for row in read_metrics(other) if row["kind"] == "train"] == list(
        range(1, STEPS + 1)
    )


def test_two_nodes_end_with_the_bits_of_two_local_ranks(
    slurm: Path, root: Path, glyph_shards: Path, local: Path
) -> None:
    output = runs.run("submit", *arguments(root, glyph_shards, "two-nodes"))

    assert f"submitted: job {job_id(root / 'two-nodes')} (slurm)" in output
    assert show_job(root / "two-nodes")["NumNodes"] == "2"
    assert_same_run(local, root / "two-nodes")


@pytest.mark.parametrize("signal", ["USR2", "TERM"])
def test_a_signalled_run_is_requeued_once_and_ends_with_the_same_bits(
    slurm: Path, root: Path, glyph_shards: Path, local: Path, signal: str
) -> None:
    run_dir = root / f"preempted-{signal}"
    process = runs.start("submit", *arguments(root, glyph_shards, run_dir.name))
    wait_until(lambda: is_training(run_dir), process)
    subprocess.run(["scancel", f"--signal={signal}", job_id(run_dir)], check=True)
    output, _ = process.communicate(timeout=180)

    assert process.returncode == 0, output
    assert "stopping at step" in output
    assert output.count("goes back into the queue") == 1
    assert "resuming from" in output
    assert show_job(run_dir)["Restarts"] == "1"
    assert_same_run(local, run_dir)


def test_a_cancelled_run_stays_down_and_the_same_command_goes_on(
    slurm: Path, root: Path, glyph_shards: Path, local: Path
) -> None:
    run_dir = root / "cancelled"
    command = arguments(root, glyph_shards, run_dir.name)
    process = runs.start("submit", *command)
    wait_until(lambda: is_training(run_dir), process)
    assert "saves a checkpoint and ends" in jobs.cancel(run_dir, save=True)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert "is not requeued: it was asked to stay down" in output
    assert show_job(run_dir)["Restarts"] == "0"
    listed = runs.run("jobs", "list", "--runs", str(root))
    (line,) = [line for line in listed.splitlines() if line.startswith("cancelled ")]
    assert f"stopped  job slurm {job_id(run_dir)}  step " in line
    assert "checkpoint step-000" in line
    assert "stopping at step" in runs.run("jobs", "logs", run_dir.name, "--runs", str(root))
    twice = runs.run("jobs", "cancel", run_dir.name, "--runs", str(root), expect=2)
    assert f"job {job_id(run_dir)} has ended already" in twice

    runs.run("submit", *command)

    assert_same_run(local, run_dir)


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
    assert "--cpus-per-task=4 --open-mode=append" in text
    assert not (root / "dry").exists()
    checked = subprocess.run(["sbatch", "--test-only"], input=text, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--profile", "{tmp}/nowhere.yaml"], "nowhere.yaml: cannot be read: No such file"),
        (["--profile", "{tmp}/wrong.yaml"], "Invalid partition name specified"),
        (["runs_dir=/proc/nowhere"], "run directory /proc/nowhere/refused: cannot be written"),
    ],
)
def test_what_cannot_be_submitted_is_one_line_and_status_2(
    slurm: Path, root: Path, glyph_shards: Path, tmp_path: Path, change: list[str], message: str
) -> None:
    (tmp_path / "wrong.yaml").write_text("partition: nowhere\n")
    changes = [text.replace("{tmp}", str(tmp_path)) for text in change]
    output = runs.run("submit", *arguments(root, glyph_shards, "refused"), *changes, expect=2)
    assert message in output
    assert output.strip().splitlines()[-1].startswith("error: ")
    assert len(output.strip().splitlines()) == 1
    assert not (root / "refused" / "job.json").exists()


def test_a_missing_recipe_is_one_line_and_status_2(slurm: Path) -> None:
    output = runs.run("submit", "nowhere", "--cluster", "slurm", expect=2)
    assert output.startswith("error: ")
    assert len(output.strip().splitlines()) == 1
