"""`vmp jobs` without a cluster: runs of the local executor and runs never submitted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline import rundir
from pipeline.commands import watch as jobs
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.prepare import prepare_run
from pipeline.rundir import State
from slurm import launch
from slurm.errors import ClusterError
from slurm.record import JobRecord
from tests import runs

pytestmark = pytest.mark.dist


def start_endless(root: Path, shards: Path) -> Path:
    """A local job that has committed a checkpoint and goes on; returns the run directory."""
    run_dir = root / "endless"
    arguments = runs.overrides(
        root,
        shards,
        "endless",
        schedule__epochs=10_000,
        launch__ranks_per_node=1,
        checkpoint__every_steps=5,
    )
    # Not through a pipe: the controller inherits it and would keep it open.
    command = [sys.executable, "-m", "pipeline.cli", "submit", "--no-follow", *arguments]
    with (root / "submit.out").open("w") as output:
        subprocess.run(command, check=True, stdout=output, stderr=output, timeout=120)
    deadline = time.monotonic() + 120
    while jobs.list_jobs(root)[0].checkpoint is None:
        assert launch.find_running(run_dir) is not None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return run_dir


def test_a_rank_whose_controller_is_killed_alone_saves_and_ends(
    tmp_path: Path, glyph_shards: Path
) -> None:
    run_dir = start_endless(tmp_path, glyph_shards)
    running = launch.find_running(run_dir)
    assert running is not None

    os.kill(int(running.job_id), signal.SIGKILL)

    deadline = time.monotonic() + 60
    while rundir.is_active(run_dir):
        assert time.monotonic() < deadline, "the rank trains on"
        time.sleep(0.1)
    (row,) = jobs.list_jobs(tmp_path)
    assert (row.state, row.reason) == ("stopped", "preempted: signal SIGTERM")


def test_a_local_job_is_listed_and_cancelled(tmp_path: Path, glyph_shards: Path) -> None:
    run_dir = start_endless(tmp_path, glyph_shards)
    deadline = time.monotonic() + 120
    (row,) = jobs.list_jobs(tmp_path)
    assert (row.name, row.state) == ("endless", "running")
    assert str(row.job).startswith("local:")
    assert row.step >= 5
    assert (row.loss or 0) > 0

    assert "is cancelled" in jobs.cancel(run_dir, save=False)

    while launch.find_running(run_dir) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert jobs.list_jobs(tmp_path)[0].state == "cancelled"
    shown: list[str] = []
    jobs.print_log(run_dir, shown.append, follow=False)
    assert any(re.search("step 5/.* train ", line) for line in shown)
    with pytest.raises(ClusterError, match="has ended already"):
        jobs.cancel(run_dir, save=True)


def test_a_clock_that_was_set_does_not_end_a_local_job(tmp_path: Path) -> None:
    started = psutil.Process().create_time()
    for shift_s, runs_still in ((0.4, True), (60.0, False)):
        record = JobRecord(cluster="local", job_id=str(os.getpid()), started=started + shift_s)
        record.write(tmp_path)
        assert (launch.find_running(tmp_path) is not None) is runs_still


def test_a_broken_file_costs_one_row(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        prepare_run(load_config("demo", [f"name={name}", f"runs_dir={tmp_path}"]))
    (tmp_path / "a" / "status.json").write_text("")
    (tmp_path / "b" / "job.json").write_text('{"cluster": "lo')
    rows = jobs.list_jobs(tmp_path)
    assert [row.state for row in rows] == ["unreadable", "unreadable", "never started"]
    assert "a/status.json: not a whole status" in rows[0].reason
    assert "b/job.json: not the whole record of a job" in rows[1].reason


def test_what_else_may_lie_in_a_run_does_not_stop_the_list(tmp_path: Path) -> None:
    run_dir = prepare_run(load_config("demo", ["name=a", f"runs_dir={tmp_path}"]))
    for name in ("step-00000040.bak", "mine"):
        (run_dir / "checkpoints" / name).mkdir(parents=True)
        (run_dir / "checkpoints" / name / "COMMITTED").touch()
    rows = '{"step": 3, "kind": "train", "time": 1, "loss": 0.5, "\u2028": 1}\n'.encode()
    rows += b'{"kind": "train"}\n\0\0\n\xff\n{"step": 4, "kind": "eval", "time": 1}\n'
    rows += b'{"step": 5, "kind": "train", "time": 1}\n'
    (run_dir / "metrics.jsonl").write_bytes(rows)
    (run_dir / "attempts.jsonl").write_bytes(b"\0\n{}\n")
    (run_dir / "logs" / "heartbeat-rank00000.json").write_text("{}")
    (tmp_path / "gone").symlink_to("nowhere")
    rows_shown = jobs.list_jobs(tmp_path)
    assert [(row.name, row.step, row.loss, row.checkpoint) for row in rows_shown] == [
        ("a", 5, 0.5, None)
    ]
    assert rows_shown[0].cells()["loss"] == "0.5000"


def test_a_job_that_is_killed_is_called_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = prepare_run(load_config("demo", ["name=run", f"runs_dir={tmp_path}"]))
    with subprocess.Popen(["sleep", "60"]) as process:
        started = psutil.Process(process.pid).create_time()
        JobRecord(cluster="local", job_id=str(process.pid), started=started).write(run_dir)
        monkeypatch.setenv("VMP_ATTEMPT", "7.0")
        rundir.write_status(run_dir, State.RUNNING)
        monkeypatch.delenv("VMP_ATTEMPT")
        jobs.cancel(run_dir, save=False)
    (row,) = jobs.list_jobs(tmp_path)
    assert (row.state, row.reason) == ("cancelled", "cancelled: vmp jobs cancel")
    assert rundir.read_status(run_dir).attempt == "7.0"


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no job of `vmp submit` is known"):
        jobs.cancel(tmp_path / "nothing", save=True)
    with pytest.raises(ConfigError, match="not found"):
        jobs.list_jobs(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="not found"):
        jobs.forgive(tmp_path / "nowhere", "node1")
    with pytest.raises(ConfigError, match="not found"):
        list(jobs.bad_nodes(tmp_path / "nowhere"))
    assert jobs.forgive(tmp_path, "node1") == "node1: has no faults here"
