"""Faults of jobs on a real SLURM: each run ends with the bits of the undisturbed one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.checkpoint import layout
from pipeline.rundir import read_attempts
from pipeline.rundir.samples import read_samples
from pipeline.training.distributed import free_port
from tests import runs
from tests.conftest import require
from tests.slurm import drive
from tests.slurm.drive import STEPS

pytestmark = [pytest.mark.dist, pytest.mark.slow]


def arguments(root: Path, shards: Path, name: str, **fields: object) -> list[str]:
    return drive.arguments(root, shards, name, STEPS, **{"checkpoint__every_steps": 10, **fields})


def start_and_wait_for_checkpoint(arguments: list[str], run_dir: Path) -> subprocess.Popen[str]:
    process = runs.start("submit", *arguments)
    runs.wait_for_checkpoint(run_dir, process)
    return process


def assert_same(undisturbed: Path, other: Path, uri: str | None = None) -> None:
    drive.assert_same_run(undisturbed, other, STEPS)
    runs.assert_one_mlflow_run(other, STEPS, uri)


def test_a_killed_rank_is_retried_on_another_node(
    slurm: Path, root: Path, glyph_shards: Path, undisturbed: Path
) -> None:
    run_dir = root / "killed-rank"
    process = start_and_wait_for_checkpoint(arguments(root, glyph_shards, run_dir.name), run_dir)
    victim = drive.ranks(run_dir)[1]
    node = drive.node_of(victim)
    victim.kill()
    output = drive.finish(process, run_dir)

    assert f"node_fault: rank 1 on {node} ended without a word" in output
    assert output.count("goes back into the queue") == 1
    assert f"without {node}" in output
    assert node not in drive.show_job(run_dir)["NodeList"]
    (attempt,) = [a for a in read_attempts(run_dir) if a.stop_class == "node_fault"]
    assert attempt.node == node
    assert attempt.step >= 10
    assert_same(undisturbed, run_dir)
    # The next submission of any run of this directory keeps away from it, until it is forgiven.
    dry = runs.run("submit", *arguments(root, glyph_shards, "later"), "--dry-run")
    assert f"#SBATCH --exclude={node}" in dry
    assert node in runs.run("jobs", "nodes", "--runs", str(root))
    runs.run("jobs", "nodes", "--runs", str(root), "--forgive", node)
    assert runs.run("jobs", "nodes", "--runs", str(root)) == ""


def test_a_lost_node_is_left_by_slurm_itself(
    slurm: Path, root: Path, glyph_shards: Path, undisturbed: Path
) -> None:
    run_dir = root / "lost-node"
    process = start_and_wait_for_checkpoint(arguments(root, glyph_shards, run_dir.name), run_dir)
    node = drive.node_of(drive.ranks(run_dir)[1])
    drive.slurm("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    try:
        output = drive.finish(process, run_dir)
    finally:
        drive.bring_back(node)

    assert "resuming from" in output
    assert node not in drive.show_job(run_dir)["NodeList"]
    assert read_attempts(run_dir)[0].action == "requeued by SLURM"
    assert_same(undisturbed, run_dir)


def test_a_time_limit_saves_requeues_and_goes_on(
    slurm: Path, root: Path, glyph_shards: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run_dir = root / "time-limit"
    profile = tmp_path / "profile.yaml"
    profile.write_text("time_min: 2\ngrace_s: 55\n")
    command = arguments(root, glyph_shards, run_dir.name, checkpoint__every_steps=1000)
    process = runs.start("submit", *command, "--profile", str(profile))
    drive.wait_until(lambda: drive.steps_done(run_dir) > 5, process)
    ranks = drive.ranks(run_dir)
    for rank in ranks.values():
        rank.suspend()  # the run would be over before; SLURM wakes its ranks with the signal
    output = drive.finish(process, run_dir)

    # The signal comes up to a minute early: the second attempt may be told as well.
    restarts = int(drive.show_job(run_dir)["Restarts"])
    assert restarts >= 1
    assert output.count("goes back into the queue") == restarts
    (attempt, *_) = read_attempts(run_dir)
    assert attempt.stop_class == "time_limit"
    assert attempt.step > 5, "nothing was saved"
    assert_same(undisturbed, run_dir)


def test_a_cancelled_job_is_resumed_by_a_person(
    slurm: Path, root: Path, glyph_shards: Path, undisturbed: Path
) -> None:
    run_dir = root / "scancelled"
    command = arguments(root, glyph_shards, run_dir.name)
    process = start_and_wait_for_checkpoint(command, run_dir)
    drive.slurm("scancel", drive.job_id(run_dir))
    process.communicate(timeout=120)
    assert process.returncode != 0

    runs.run("jobs", "resume", run_dir.name, "--runs", str(root))
    runs.run("submit", *command)

    assert_same(undisturbed, run_dir)


def test_numbers_that_are_not_finite_stop_the_run_for_good(
    slurm: Path, root: Path, glyph_shards: Path
) -> None:
    run_dir = root / "diverged"
    command = arguments(root, glyph_shards, run_dir.name, optim__lr=1e30, schedule__warmup_epochs=0)
    output = runs.run("submit", *command, expect=1)

    assert "non_finite" in output
    assert "is not requeued: the same numbers would come again" in output
    assert drive.show_job(run_dir)["JobState"] == "FAILED"
    assert drive.show_job(run_dir)["Restarts"] == "0"
    status = json.loads((run_dir / "status.json").read_text())
    assert (status["state"], status["stop_class"]) == ("failed", "non_finite")
    client = runs.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    run = client.get_run((run_dir / "mlflow_run_id").read_text().strip())
    assert run.info.status == "FAILED"
    assert run.data.tags["stop.class"] == "non_finite"


# Python runs this at its start, as it stands on the path of the job. Rank 0 kills itself before the
# n-th touch of its checkpoint directory in its first save; the next attempt takes the next n.
_DYING = """
import os, pathlib, signal, sys
plan = pathlib.Path(__file__).with_name("plan")
instants = plan.read_text().split()
touches = 0

def hook(event, arguments):
    global touches
    touched = event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")
    if touched and "/checkpoints/step-" in str(arguments[0]):
        touches += 1
        if touches == int(instants[0]):
            plan.write_text(" ".join(instants[1:]))
            os.kill(os.getpid(), signal.SIGKILL)

if instants and os.environ.get("SLURM_PROCID") == "0":
    sys.addaudithook(hook)
"""


def test_killed_at_instants_of_a_save_no_half_checkpoint_is_read(
    slurm: Path, root: Path, glyph_shards: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run_dir = root / "killed-in-save"
    (tmp_path / "sitecustomize.py").write_text(_DYING)
    # Between shard and state, before the rename, at the marker; tests/pipeline/checkpoint has all.
    (tmp_path / "plan").write_text("8 23 27")
    profile = tmp_path / "profile.yaml"
    profile.write_text("retry: {max_faults: 9, backoff_s: 0, exclude_faulty: false}\n")
    command = arguments(root, glyph_shards, run_dir.name)
    process = runs.start(
        "submit", *command, "--profile", str(profile), env={"PYTHONPATH": str(tmp_path)}
    )
    drive.wait_until((run_dir / "job.json").exists, process)
    output = drive.finish(process, run_dir)

    assert (tmp_path / "plan").read_text() == "", "not every instant was reached"
    assert output.count("ended without a word (killed by SIGKILL)") == 3
    assert_same(undisturbed, run_dir)


@pytest.fixture
def small_disk(root: Path) -> Iterator[Path]:
    """The checkpoint directory of the run "full" on a file system of its own, of 4 MiB."""
    require(os.getuid() == 0, "root, to mount a small file system")
    place = root / "full" / "checkpoints"
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_disk_stops_the_run_and_the_older_checkpoints_are_intact(
    slurm: Path, root: Path, glyph_shards: Path, undisturbed: Path, small_disk: Path
) -> None:
    run_dir = root / "full"
    command = arguments(root, glyph_shards, run_dir.name, checkpoint__keep_last=2)
    process = start_and_wait_for_checkpoint(command, run_dir)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        fill(filler)
    output = drive.finish(process, run_dir, expect=1)

    assert "No space left on device" in output
    assert "is not requeued: free space" in output
    assert json.loads((run_dir / "status.json").read_text())["stop_class"] == "disk_full"
    for checkpoint in layout.committed(small_disk):
        layout.verify(checkpoint)
    filler.unlink()

    runs.run("submit", *command)

    assert_same(undisturbed, run_dir)


class TrackingServer:
    """A real `mlflow server` on a sqlite store."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._command = [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--backend-store-uri", f"sqlite:///{folder}/server.db"),
            *("--artifacts-destination", str(folder / "artifacts")),
        ]
        self._log = (folder / "server.log").open("a")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._process = subprocess.Popen(
            self._command,
            env=environment,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        deadline = time.monotonic() + 90
        probe = ["curl", "-sf", f"{self.uri}/health"]
        while subprocess.run(probe, capture_output=True).returncode:
            assert self._process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None


def test_no_step_is_lost_when_the_tracking_server_is_killed_and_comes_back(
    slurm: Path, root: Path, glyph_shards: Path, undisturbed: Path, tmp_path: Path
) -> None:
    server = TrackingServer(tmp_path)
    server.start()
    run_dir = root / "tracked"
    try:
        command = arguments(root, glyph_shards, run_dir.name, tracking__uri=server.uri)
        process = start_and_wait_for_checkpoint(command, run_dir)
        drive.wait_until((run_dir / "mlflow_run_id").exists, process)
        server.kill()
        seen = drive.steps_done(run_dir)
        drive.wait_until(lambda: drive.steps_done(run_dir) > seen + 10, process)
        server.start()
        drive.finish(process, run_dir)
        assert_same(undisturbed, run_dir, server.uri)
    finally:
        server.kill()


def test_other_numbers_of_nodes_and_zero_stages_train_on_the_same_batches(
    slurm: Path, root: Path, glyph_shards: Path, undisturbed: Path
) -> None:
    run_dir = root / "elastic"
    for nodes, stage, until in ((2, 1, 30), (1, 3, 60), (3, 2, None)):
        command = arguments(root, glyph_shards, run_dir.name, engine__zero_stage=stage)
        command[command.index("--nodes") + 1] = str(nodes)
        process = runs.start("submit", *command)
        if until is not None:
            drive.wait_until(lambda step=until: drive.steps_done(run_dir) >= step, process)
            with drive.suspended(run_dir):  # or it may be over before the command has started
                runs.run("jobs", "cancel", run_dir.name, "--save", "--runs", str(root))
        drive.finish(process, run_dir, expect=75 if until else 0)
        newest = layout.read_state(layout.committed(run_dir / "checkpoints")[-1])
        assert (newest.world_size, newest.zero_stage) == (nodes, stage)

    assert read_samples(run_dir) == read_samples(undisturbed)
    difference = runs.largest_relative_difference(
        runs.final_state(undisturbed), runs.final_state(run_dir)
    )
    assert difference < 1e-5
