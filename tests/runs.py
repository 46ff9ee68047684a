"""Small training runs for the tests of several ranks: started, killed, compared."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from mlflow import MlflowClient

from pipeline.checkpoint import layout
from pipeline.checkpoint.load import FullState, read_full_state
from pipeline.rundir import read_heartbeats
from pipeline.training.distributed import free_port

TINY = [
    "model.preset=videomambapro-tiny-test",
    "model.num_classes=8",
    "model.drop_path_rate=0.2",
    "data.hflip=0.5",
    "batch.global_size=12",
    "batch.max_micro=3",
    "schedule.warmup_epochs=0.5",
    "ema.decay=0.9",
    "eval.every_epochs=2",
    "eval.batch_size=8",
    "log_every_steps=1",
    "log_samples=true",
]


def overrides(root: Path, shards: Path, name: str, **fields: object) -> list[str]:
    """Arguments of `vmp train` for a tiny run; `a__b=c` sets a.b=c."""
    own = [f"{key.replace('__', '.')}={value}" for key, value in fields.items()]
    return ["demo", f"name={name}", f"runs_dir={root}", f"data.train={shards}", *TINY, *own]


def start(*arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """`vmp ARGUMENTS` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        env=os.environ | (env or {}),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*arguments: str, expect: int = 0, env: dict[str, str] | None = None) -> str:
    """Output of `vmp ARGUMENTS`, which must end with status `expect`."""
    process = start(*arguments, env=env)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == expect, output
    return output


def wait_for_checkpoint(run_dir: Path, process: subprocess.Popen[str], after: int = 0) -> int:
    """Step of the first checkpoint beyond `after` that the running process commits."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        steps = [layout.step_of(p) for p in layout.committed(run_dir / "checkpoints")]
        if steps and max(steps) > after:
            return max(steps)
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint after step {after}")


def kill_group(process: subprocess.Popen[str]) -> None:
    """SIGKILL the process and all it has started; returns when their pipe is closed."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def final_state(run_dir: Path) -> FullState:
    _, full = read_full_state(layout.committed(run_dir / "checkpoints")[-1])
    return full


def assert_bitwise_equal(first: FullState, second: FullState) -> None:
    assert first.keys() == second.keys()
    for name, tensors in first.items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, second[name][key]), f"{key} of {name} differs"


def largest_relative_difference(first: FullState, second: FullState) -> float:
    """The largest difference over all parameters and averages, relative to the largest element."""
    return max(
        float((first[n][key] - second[n][key]).abs().max()) / float(first[n][key].abs().max())
        for n in first
        for key in ("param", "ema")
    )


def assert_one_mlflow_run(run_dir: Path, steps: int, uri: str | None = None) -> None:
    """Check that all attempts are one run of the tracking store, each step in it once, in order."""
    client = MlflowClient(uri or f"sqlite:///{run_dir.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("videomambapro")
    assert experiment is not None
    found = [
        r
        for r in client.search_runs([experiment.experiment_id], max_results=1000)
        if r.info.run_name == run_dir.name
    ]
    assert [r.info.run_id for r in found] == [(run_dir / "mlflow_run_id").read_text().strip()]
    assert found[0].info.status == "FINISHED"
    history = client.get_metric_history(found[0].info.run_id, "train/loss")
    assert [point.step for point in history] == list(range(1, steps + 1))
    assert found[0].data.params["model.embed_dim"] == "32"
    artifacts = {a.path for a in client.list_artifacts(found[0].info.run_id)}
    assert {"config.yaml", "summary.json"} <= artifacts


def start_ranks(
    run_dir: Path, ranks: int, of_rank: dict[int, dict[str, str]] | None = None
) -> list[subprocess.Popen[str]]:
    """Start the ranks of a prepared run without a launcher, which would kill them when one ends.

    `of_rank`: environment of single ranks. Output goes to logs/output-<rank>.txt: `output_of`.
    """
    common = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = []
    for rank in range(ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), **(of_rank or {}).get(rank, {})}
        with _output(run_dir, rank).open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.training.train", str(run_dir)],
                env=os.environ | common | own,
                start_new_session=True,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        started.append(process)
    return started


def output_of(run_dir: Path, rank: int) -> str:
    return _output(run_dir, rank).read_text()


def _output(run_dir: Path, rank: int) -> Path:
    return run_dir / "logs" / f"output-{rank}.txt"


def wait_for_step(run_dir: Path, step: int, processes: list[subprocess.Popen[str]]) -> None:
    """Return when all ranks have said that they have done `step`."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        seen = read_heartbeats(run_dir)
        if len(seen) == len(processes) and min(h.step for h in seen) >= step:
            return
        for rank, process in enumerate(processes):
            assert process.poll() is None, output_of(run_dir, rank)
        time.sleep(0.05)
    raise AssertionError(f"no step {step}")
