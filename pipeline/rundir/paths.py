"""The names of what lies in runs/<name>/, and beside it in runs/; no other module spells them."""

from __future__ import annotations

import re
from pathlib import Path

CONFIG_FILE = "config.yaml"
PROVENANCE_FILE = "provenance.json"
SUMMARY_FILE = "summary.json"
STATUS_FILE = "status.json"
METRICS_FILE = "metrics.jsonl"
ATTEMPTS_FILE = "attempts.jsonl"
JOB_FILE = "job.json"
TRACKING_ID_FILE = "mlflow_run_id"
TRACKING_PENDING_FILE = "mlflow_pending"
"""Exists while the store lacks rows of a run that has ended."""
LOCK_FILE = ".lock"
CHECKPOINTS = "checkpoints"
LOGS = "logs"
CODE = "code"

# Beside the runs, for all of them.
NODE_LEDGER = "bad_nodes.jsonl"
SNAPSHOTS = ".code"
ARRAY_LOGS = ".arrays"
TRACKING_STORE = "mlflow.db"
TRACKING_ARTIFACTS = "mlartifacts"

MARKER = "COMMITTED"
"""In a checkpoint: it is whole."""
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
    """There when a rank has asked all others for their stacks."""
    return run_dir / LOGS / "hang"


def collective_traces(run_dir: Path) -> Path:
    """What the names of NCCL's dumps begin with; absolute, for processes that change directory."""
    return (run_dir / LOGS / "nccl-trace-rank").resolve()


def of_all_ranks(run_dir: Path, example: Path) -> list[Path]:
    """The files of every rank that are named as `example`, one of them, by rank."""
    pattern = re.sub(r"rank\d{5}", "rank[0-9]*", example.name)
    return sorted((run_dir / LOGS).glob(pattern))


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """The step of a checkpoint by its name; None when it is the name of something else."""
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match else None


def is_unfinished(path: Path) -> bool:
    """Has a killed run left this in the directory of checkpoints? Anything of a user's is not."""
    if path.is_symlink() or not path.is_dir():
        return False
    if _STAGING.fullmatch(path.name):
        return True
    return step_of(path) is not None and not (path / MARKER).is_file()


def committed(checkpoints: Path) -> list[Path]:
    """The checkpoints of a directory that carry their marker, oldest first; links are not followed.

    [] when there is no such directory.
    """
    if not checkpoints.is_dir():
        return []
    return sorted(
        path
        for path in checkpoints.iterdir()
        if step_of(path) is not None and not path.is_symlink() and (path / MARKER).is_file()
    )


def newest_step(run_dir: Path) -> int:
    """Step of the newest committed checkpoint, -1 without any."""
    found = committed(run_dir / CHECKPOINTS)
    return max((step_of(path) or 0 for path in found), default=-1)
