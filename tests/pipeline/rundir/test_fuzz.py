"""Readers of a run directory return a value or nothing, or raise the package's own error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pipeline import rundir
from pipeline.checkpoint import layout
from pipeline.commands.watch import list_jobs
from pipeline.config import load_config
from pipeline.errors import CheckpointError, ConfigError
from pipeline.rundir.attempts import read_attempts
from pipeline.rundir.failures import first_failure
from pipeline.rundir.heartbeats import read_heartbeats
from pipeline.rundir.marks import read_marks
from pipeline.rundir.metrics import read_metrics
from pipeline.rundir.summary import read_summary
from slurm.errors import ClusterError
from slurm.nodes import faults
from slurm.record import find_record, read_record
from tests.fuzz import BOUNDED, damaged_json, value_or_own_error

RECORDS: dict[str, dict[str, Any]] = {
    "status.json": {"state": "failed", "attempt": "1.0", "stop_class": "crash", "reason": "r"},
    "metrics.jsonl": {"step": 1, "kind": "train", "time": 1.0, "loss": 2.0},
    "attempts.jsonl": {"job_id": "1", "stop_class": "hang", "reason": "r", "step": 3},
    "summary.json": {"top1": 0.5, "num_samples": 3, "steps": 4, "checkpoint": "c"},
    "job.json": {"cluster": "local", "job_id": "4194303", "started": 1.0, "then": "eval x y"},
    "logs/rank00000.json": {"rank": 0, "node": "n", "attempt": "1.0", "status": 1},
    "logs/heartbeat-rank00000.json": {
        "rank": 0, "host": "h", "pid": 1, "phase": "train", "step": 1, "total_steps": 2,
        "step_s": 0.1, "time": 1.0,
    },
    "logs/failure-rank00000.json": {
        "stop_class": "crash", "error": "e", "rank": 0, "host": "h", "time": 1.0,
        "attempt": "1.0", "consequence": False, "traceback": "t",
    },
    "../bad_nodes.jsonl": {"node": "n", "run": "x", "reason": "r", "time": 1.0},
}  # fmt: skip


def test_records_of_a_run(tmp_path: Path) -> None:
    """Runs each reader alone, and `vmp jobs list`, which reads all and must show every run."""
    run_dir = tmp_path / "x"
    (run_dir / rundir.LOGS).mkdir(parents=True)
    (run_dir / rundir.CONFIG_FILE).write_text(load_config("demo").to_yaml())

    def whole() -> None:
        for name, record in RECORDS.items():
            (run_dir / name).write_text(json.dumps(record) + "\n")

    def read_all() -> None:
        rundir.read_status(run_dir)
        read_metrics(run_dir)
        read_attempts(run_dir)
        read_summary(run_dir)
        read_heartbeats(run_dir)
        list(read_marks(run_dir, "1.0"))
        first_failure(run_dir, "1.0")
        faults(tmp_path)
        read_record(run_dir)
        value_or_own_error(lambda: find_record(run_dir), ClusterError)
        (row,) = list_jobs(tmp_path)
        assert row.name == "x"

    whole()
    read_all()

    @BOUNDED
    @given(data=st.data())
    def any_content(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(RECORDS)))
        (run_dir / name).write_bytes(data.draw(damaged_json(RECORDS[name])) + b"\n")
        try:
            read_all()
        finally:
            whole()

    any_content()


STATE: dict[str, Any] = {
    "step": 1, "position": 2, "adam_steps": 1, "world_size": 1, "zero_stage": 1,
    "shapes": {"w": [2, 3]}, "classes": ["a"], "data_digest": "d", "config_digest": "c",
}  # fmt: skip
MARKER = {"files": {"state.json": {"bytes": 3, "sha256": "00"}}}


def test_records_of_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001"
    path.mkdir()
    own = (CheckpointError, ConfigError)

    @BOUNDED
    @given(damaged_json(STATE), damaged_json(MARKER))
    def any_content(state: bytes, marker: bytes) -> None:
        (path / layout.STATE_FILE).write_bytes(state)
        (path / layout.MARKER).write_text(json.dumps(MARKER))
        value_or_own_error(lambda: layout.read_state(path), *own)
        (path / layout.MARKER).write_bytes(marker)
        value_or_own_error(lambda: layout.verify(path), *own)

    any_content()
