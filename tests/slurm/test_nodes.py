"""The ledger of bad nodes, and how many of them a job may exclude."""

from __future__ import annotations

import json
import time
from pathlib import Path

from pipeline.rundir.paths import NODE_LEDGER
from slurm import nodes


def test_faults_are_remembered_for_a_while_and_can_be_forgiven(tmp_path: Path) -> None:
    assert nodes.faulty(tmp_path, 24) == []
    nodes.note_fault(tmp_path, "node2", "run", "killed")
    nodes.note_fault(tmp_path, "node2", "other", "killed")
    old = {"node": "node1", "run": "run", "reason": "", "time": time.time() - 25 * 3600}
    with (tmp_path / NODE_LEDGER).open("a") as file:
        file.write(json.dumps(old) + "\n")
    assert nodes.faulty(tmp_path, 24) == ["node2"]
    assert nodes.faulty(tmp_path, 48) == ["node1", "node2"]
    assert nodes.faulty(tmp_path, 0) == []
    assert nodes.forgive(tmp_path, "node2")
    assert not nodes.forgive(tmp_path, "node2")
    assert nodes.faulty(tmp_path, 48) == ["node1"]


def test_half_a_line_in_the_ledger_costs_nothing_but_itself(tmp_path: Path) -> None:
    (tmp_path / NODE_LEDGER).write_text('{"node": "node1", "ru')
    nodes.note_fault(tmp_path, "node2", "run", "killed")
    assert nodes.faulty(tmp_path, 24) == ["node2"]
    assert nodes.forgive(tmp_path, "node2")
    assert nodes.faulty(tmp_path, 24) == []


def test_no_more_nodes_are_avoided_than_a_job_can_spare() -> None:
    usable = ["node1", "node2", "node3"]
    assert nodes.avoidable(["node2", "gone"], usable, 2) == ["node2"]
    assert nodes.avoidable(["node1", "node2"], usable, 2) == ["node1"]
    assert nodes.avoidable(["node1"], usable, 3) == []
    assert nodes.avoidable(["node1"], usable, 5) == []
