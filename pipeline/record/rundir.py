"""runs/<name>/: what is in it, who owns it, and whether a new start may go on with it."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from pipeline.checkpoint import durable
from pipeline.config import RunConfig, build_config, config_difference
from pipeline.errors import ConfigError, RunInUseError
from pipeline.health.failure import attempt_id, forget_failures
from pipeline.record import provenance

CONFIG_FILE = "config.yaml"
PROVENANCE_FILE = "provenance.json"
SUMMARY_FILE = "summary.json"
STATUS_FILE = "status.json"
ATTEMPTS_FILE = "attempts.jsonl"
"""How earlier attempts ended; written by `slurm.supervise`."""
CHECKPOINTS = "checkpoints"
LOGS = "logs"
_LOST_NODE_S = 150.0
_RESTORE = "put back the config.yaml of this run (MLflow has a copy), or choose another name=..."


def prepare(config: RunConfig) -> Path:
    """Make the run directory, or check that the one that exists belongs to the same run.

    Raises ConfigError: not writable, or an existing run with another configuration (the
    difference is listed).
    """
    run_dir = config.run_dir
    try:
        (run_dir / LOGS).mkdir(parents=True, exist_ok=True)
        if (run_dir / CONFIG_FILE).exists():
            check_same_run(run_dir, config)
        forget_failures(run_dir)
        # Each attempt may change what does not change the result: ranks, logging, saving.
        durable.write_text(run_dir / CONFIG_FILE, config.to_yaml())
        if not (run_dir / PROVENANCE_FILE).exists():
            durable.write_json(run_dir / PROVENANCE_FILE, provenance.collect())
    except OSError as error:
        raise ConfigError(
            f"run directory {run_dir}: cannot be written: {error.strerror}; "
            "set runs_dir=... to a writable directory"
        ) from error
    return run_dir


def check_same_run(run_dir: Path, config: RunConfig) -> None:
    """Raises ConfigError, with the difference, when the directory holds another run."""
    difference = config_difference(read_config(run_dir), config)
    if difference:
        raise ConfigError(
            f"run directory {run_dir} holds a run with another configuration "
            f"({'; '.join(difference)}): choose another name=... or remove it"
        )


def read_config(run_dir: Path) -> RunConfig:
    path = run_dir / CONFIG_FILE
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; is this a run?") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: not YAML: {' '.join(str(error).split())}; {_RESTORE}"
        ) from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: empty, or not a mapping of sections; {_RESTORE}")
    return build_config(raw, source=str(path))


@contextmanager
def exclusive(run_dir: Path) -> Iterator[None]:
    """Hold the run's lock; the kernel lets go of it however this process ends.

    Raises RunInUseError when another process trains in this directory.
    """
    # A file server may keep the lock of a node that was lost for a while.
    patience_s = _LOST_NODE_S if attempt_id() else 0.0
    deadline = time.monotonic() + patience_s
    with (run_dir / ".lock").open("a+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise _in_use(run_dir) from error
            time.sleep(1)
        yield


def refuse_active(run_dir: Path) -> None:
    """Raises RunInUseError when a process trains in the directory. Call it before `prepare`."""
    if is_active(run_dir):
        raise _in_use(run_dir)


def _in_use(run_dir: Path) -> RunInUseError:
    return RunInUseError(
        f"run directory {run_dir} is in use by another training process; wait for it, stop it, or "
        "choose another name=..."
    )


def is_active(run_dir: Path) -> bool:
    """Does a process on this machine train in the directory right now?"""
    if not (run_dir / ".lock").exists():
        return False
    with (run_dir / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def write_status(run_dir: Path, state: str, **details: Any) -> None:
    """What the run is doing or how it ended: running, finished, stopped, cancelled or failed."""
    content = {
        "state": state,
        "pid": os.getpid(),
        "attempt": attempt_id(),
        "updated": datetime.now(UTC).isoformat(timespec="seconds"),
        **details,
    }
    durable.write_json(run_dir / STATUS_FILE, content)


def read_status(run_dir: Path) -> dict[str, Any]:
    """The last status; {} before the first, the state "unreadable" when it is cut short."""
    path = run_dir / STATUS_FILE
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        content = None
    return content if isinstance(content, dict) else {"state": "unreadable"}
