"""Names of the files in runs/<name>/ and next to it in runs/; no other module spells them."""

from __future__ import annotations

import re
from pathlib import Path

CONFIG_FILE = "config.yaml"
PROVENANCE_FILE = "provenance.json"
SUMMARY_FILE = "summary.json"
STATUS_FILE = "status.json"
METRICS_FILE = "metrics.jsonl"
ATTEMPTS_FILE = "attempts.jsonl"
ROLLBACKS_FILE = "rollbacks.jsonl"
STARTS_FILE = "starts.jsonl"
JOB_FILE = "job.json"
TRACKING_ID_FILE = "mlflow_run_id"
TRACKING_PENDING_FILE = "mlflow_pending"
"""File that exists while the MLflow store lacks rows of a run that has ended."""
LOCK_FILE = ".lock"
CHECKPOINTS = "checkpoints"
LOGS = "logs"
CODE = "code"

# These lie next to the run directories and serve all runs.
NODE_LEDGER = "bad_nodes.jsonl"
SNAPSHOTS = ".code"
ARRAY_LOGS = ".arrays"
TRACKING_STORE = "mlflow.db"
TRACKING_ARTIFACTS = "mlartifacts"

MARKER = "COMMITTED"
"""File that marks a checkpoint as complete."""
_STEP = re.compile(r"step-(\d{8})")
_STAGING = re.compile(r"step-\d{8}\.tmp")


def failure_file(run_dir: Path, rank: int) -> Path:
    return run_dir / LOGS / f"failure-rank{rank:05d}.json"


def heartbeat_file(run_dir: Path, rank: int) -> Path:
    return run_dir / LOGS / f"heartbeat-rank{rank:05d}.json"


def mark_file(run_dir: Path, rank: int) -> Path:
    return run_dir / LOGS / f"rank{rank:05d}.json"


def stacks_file(run_dir: Path, rank: int) -> Path:
    return run_dir / LOGS / f"stacks-rank{rank:05d}.txt"


def rank_log_file(run_dir: Path, rank: int) -> Path:
    return run_dir / LOGS / f"rank{rank:05d}.log"


def samples_file(run_dir: Path, rank: int) -> Path:
    return run_dir / LOGS / f"samples-rank{rank:05d}.tsv"


def hang_file(run_dir: Path) -> Path:
    """Return the path of the file that exists once a rank has asked all others for their stacks."""
    return run_dir / LOGS / "hang"


def collective_traces(run_dir: Path) -> Path:
    """Return the path prefix of NCCL's dumps, absolute because a process may change directory."""
    return (run_dir / LOGS / "nccl-trace-rank").resolve()


def of_all_ranks(run_dir: Path, example: Path) -> list[Path]:
    """Return the files of all ranks that are named as `example`, the file of one rank, by rank."""
    pattern = re.sub(r"rank\d{5}", "rank[0-9]*", example.name)
    return sorted((run_dir / LOGS).glob(pattern))


def rank_of(path: Path) -> int:
    """Return the rank in the name of a file that `of_all_ranks` found."""
    match = re.search(r"rank(\d+)", path.name)
    assert match is not None, f"{path}: no file of a rank"
    return int(match[1])


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """Return the step in a checkpoint's name; None when the name is not that of a checkpoint."""
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match else None


def is_unfinished(path: Path) -> bool:
    """Return whether `path` is a checkpoint that a killed run left unfinished."""
    if path.is_symlink() or not path.is_dir():
        return False
    if _STAGING.fullmatch(path.name):
        return True
    return step_of(path) is not None and not (path / MARKER).is_file()


def committed(checkpoints: Path) -> list[Path]:
    """Return the checkpoints with a marker, oldest first; [] when there is no such directory.

    Symbolic links are left out.
    """
    if not checkpoints.is_dir():
        return []
    return sorted(
        path
        for path in checkpoints.iterdir()
        if step_of(path) is not None and not path.is_symlink() and (path / MARKER).is_file()
    )


def newest_step(run_dir: Path) -> int:
    """Return the step of the newest committed checkpoint; -1 when there is none."""
    found = committed(run_dir / CHECKPOINTS)
    return max((step_of(path) or 0 for path in found), default=-1)
