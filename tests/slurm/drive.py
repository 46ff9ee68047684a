"""Runs on the real SLURM of the tests: submit, look inside, disturb, compare."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from pipeline.rundir.metrics import read_metrics
from pipeline.rundir.samples import read_samples
from slurm import queue
from tests import runs

STEPS = 90  # of the undisturbed run
TWO_NODES = ("--cluster", "slurm", "--nodes", "2", "--gpus-per-node", "0")


def overrides(root: Path, shards: Path, name: str, steps: int, **fields: object) -> list[str]:
    """Overrides of a tiny run of `steps` steps, eight of them to an epoch."""
    length = {"schedule__epochs": steps / 8, "schedule__max_steps": steps}
    return runs.overrides(root, shards, name, **length, **fields)


def arguments(root: Path, shards: Path, name: str, steps: int, **fields: object) -> list[str]:
    """Arguments of `vmp submit` for the tiny run on two nodes with one rank each."""
    own = {"launch__ranks_per_node": 1, "checkpoint__every_steps": 1000, **fields}
    return [*TWO_NODES, *overrides(root, shards, name, steps, **own)]


def slurm(*command: str) -> str:
    """Output of a SLURM command, which must succeed."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def wait_until(
    condition: Callable[[], bool], process: subprocess.Popen[str], timeout_s: float = 120
) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def steps_done(run_dir: Path) -> int:
    """The newest logged training step."""
    if not (run_dir / "metrics.jsonl").exists():
        return 0
    return max((row["step"] for row in read_metrics(run_dir)), default=0)


def job_id(run_dir: Path) -> str:
    found: str = json.loads((run_dir / "job.json").read_text())["job_id"]
    return found


def wait_for_job(job: str) -> list[str]:
    """How the job, or each element of the array, has ended."""
    deadline = time.monotonic() + 180
    while not queue.has_ended(job):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return queue.states(job)


def show_job(run_dir: Path) -> dict[str, str]:
    answer = slurm("scontrol", "-o", "show", "job", job_id(run_dir))
    return dict(field.split("=", 1) for field in answer.split() if "=" in field)


def ranks(run_dir: Path) -> dict[int, psutil.Process]:
    """The processes of the run's ranks that live now."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "submitit.core._submit" in line and any(f"/{run_dir.name}/" in part for part in line):
            try:
                environment = process.environ()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            # The forked workers of a rank look the same, but have it as their parent.
            parent = process.parent()
            if parent is not None and "submitit.core._submit" in parent.cmdline():
                continue
            if "SLURM_PROCID" in environment:
                found[int(environment["SLURM_PROCID"])] = process
    return found


@contextmanager
def suspended(run_dir: Path) -> Iterator[None]:
    """Hold the run's ranks still; signals reach them afterwards."""
    stopped = ranks(run_dir).values()
    for rank in stopped:
        rank.suspend()
    try:
        yield
    finally:
        for rank in stopped:
            rank.resume()


def node_of(process: psutil.Process) -> str:
    return process.environ()["SLURMD_NODENAME"]


def bring_back(node: str) -> None:
    """Make a node that was set down usable, unless it has come back by itself."""
    state = slurm("sinfo", "-h", "-N", "-n", node, "-o", "%T").split()[0]
    if state.startswith(("down", "drain")):
        slurm("scontrol", "update", f"NodeName={node}", "State=RESUME")


def hurry(run_dir: Path) -> None:
    """A requeued job waits for its credential to expire; let it start now."""
    job = show_job(run_dir)
    if job["JobState"] == "PENDING" and job["Reason"] == "BeginTime":
        time.sleep(2)  # a credential of the second in which the last one was revoked is void
        command = ["scontrol", "update", f"JobId={job['JobId']}", "StartTime=now"]
        subprocess.run(command, capture_output=True)  # it may have started by itself


def finish(process: subprocess.Popen[str], run_dir: Path, expect: int = 0) -> str:
    """Output of a `vmp submit` that must end with status `expect`; requeued jobs start at once."""
    deadline = time.monotonic() + 300
    while True:
        try:
            output, _ = process.communicate(timeout=0.5)
            break
        except subprocess.TimeoutExpired:
            assert time.monotonic() < deadline
            hurry(run_dir)
    assert process.returncode == expect, output
    return output


def assert_same_run(undisturbed: Path, other: Path, steps: int) -> None:
    """Check for the same bits, the same samples in every global batch, each step logged once."""
    runs.assert_bitwise_equal(runs.final_state(undisturbed), runs.final_state(other))
    assert read_samples(other) == read_samples(undisturbed)
    logged = [row["step"] for row in read_metrics(other) if row["kind"] == "train"]
    assert logged == list(range(1, steps + 1))
