"""1,024 ranks on 128 nodes: what reads their files opens each of them at most once."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import layout
from pipeline.checkpoint.config import CheckpointConfig
from pipeline.checkpoint.layout import RunState
from pipeline.checkpoint.save import CheckpointSaver
from pipeline.commands.watch import list_jobs
from pipeline.config import load_config
from pipeline.prepare import prepare_run
from pipeline.rundir import Failure, Heartbeat, Phase, RankMark, StopClass, read_heartbeats
from pipeline.training.distributed import World
from slurm.judge import gather, judge
from slurm.record import JobRecord, Resources
from tests.file_operations import operations_under

NODES, PER_NODE = 128, 8
RANKS = NODES * PER_NODE
ATTEMPT = "7.0"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory after rank 700 has failed and taken the others with it."""
    root = tmp_path_factory.mktemp("runs")
    run_dir = prepare_run(load_config("demo", [f"runs_dir={root}", "name=large"]))
    for node in range(NODES):
        first, *others = (beat(rank) for rank in range(node * PER_NODE, (node + 1) * PER_NODE))
        first.model_copy(update={"others": tuple(others)}).write(run_dir)
    for rank in range(RANKS):
        mark = RankMark(rank=rank, node=f"n{rank // PER_NODE}", attempt=ATTEMPT, status=1)
        plain(run_dir / "logs" / f"rank{rank:05d}.json", mark.model_dump_json())
        failure = Failure(
            stop_class=StopClass.CRASH if rank == 700 else StopClass.NODE_FAULT,
            error="ValueError: boom" if rank == 700 else "DistError: peer",
            rank=rank,
            host=mark.node,
            time=1000.0 + rank,
            attempt=ATTEMPT,
            consequence=rank != 700,
            traceback="",
        )
        plain(run_dir / "logs" / f"failure-rank{rank:05d}.json", failure.model_dump_json())
    return run_dir


def beat(rank: int) -> Heartbeat:
    return Heartbeat(
        rank=rank,
        host=f"n{rank // PER_NODE}",
        pid=rank,
        phase=Phase.TRAIN,
        step=40,
        total_steps=90,
        step_s=1.0,
        time=time.time(),
    )


def plain(path: Path, text: str) -> None:
    """Write without the two syncs of the real writer, which are slow for a thousand files."""
    path.write_text(text)


def assert_once(seen: list[str], at_most: int) -> None:
    """Check that no file is opened twice, listings aside, and that there are few operations."""
    files = Counter(path for path in seen if not Path(path).is_dir())
    repeated = {Path(path).name: count for path, count in files.items() if count > 1}
    assert not repeated
    assert len(seen) <= at_most


def test_a_table_of_jobs_reads_one_rank(run_dir: Path) -> None:
    with operations_under(run_dir / "logs") as seen:
        (row,) = list_jobs(run_dir.parent)
    assert (row.step, row.total_steps) == (40, 90)
    assert_once(seen, at_most=3)


def test_all_ranks_are_read_from_a_file_per_node(run_dir: Path) -> None:
    with operations_under(run_dir / "logs") as seen:
        assert [heartbeat.rank for heartbeat in read_heartbeats(run_dir)] == list(range(RANKS))
    assert_once(seen, at_most=NODES + 2)


def test_the_supervisor_reads_each_record_once(run_dir: Path) -> None:
    record = JobRecord(resources=Resources(nodes=NODES, ranks_per_node=PER_NODE))
    job = {"JobState": "RUNNING", "Requeue": "1", "EndTime": "Unknown"}
    with operations_under(run_dir / "logs") as seen:
        end = judge(gather(run_dir, ATTEMPT, 1, job, record))
    assert end.stop_class is StopClass.CRASH
    assert "rank 700" in end.reason
    assert_once(seen, at_most=2 * RANKS + 4)


def test_a_commit_reads_each_record_once_and_lists_the_folder_twice(tmp_path: Path) -> None:
    world = World(rank=0, size=RANKS, local_rank=0, device=torch.device("cpu"))
    saver = CheckpointSaver(tmp_path, CheckpointConfig(), world)
    staging = tmp_path / "step-00000009.tmp"
    staging.mkdir()
    for rank in range(RANKS):
        name = layout.shard_name(rank, RANKS)
        plain(staging / f"{name}.safetensors", "x")
        plain(staging / f"{name}.json", json.dumps({"bytes": 1, "sha256": "a" * 64}))
    state = RunState.model_construct(step=9)
    plain(staging / layout.STATE_FILE, state.model_dump_json())
    with operations_under(staging) as seen:
        saver._await_shards(staging)
        saver._commit(staging)
    files = json.loads((tmp_path / "step-00000009" / layout.MARKER).read_text())["files"]
    assert len(files) == 2 * RANKS + 1
    assert files[f"{layout.shard_name(700, RANKS)}.safetensors"]["sha256"] == "a" * 64
    reads = Counter(path for path in seen if path.endswith(".json"))
    assert max(reads.values()) == 1
    assert len(seen) <= RANKS + 6
    assert not any(path.endswith(".safetensors") for path in seen)
