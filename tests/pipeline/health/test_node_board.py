"""One rank per node meets the shared file system."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.health.config import HealthConfig
from pipeline.health.heartbeat import HeartbeatWriter
from pipeline.health.node_board import BUDGET_PER_S, NodeBoard
from pipeline.health.pulse import Pulse
from pipeline.health.watchdog import Watchdog
from pipeline.rundir import read_heartbeats
from pipeline.rundir.paths import heartbeat_file
from tests.file_operations import operations_under

As = Callable[[int, int, int], None]


@pytest.fixture
def as_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> As:
    """Returns a function that becomes `rank` of `world`, with `per_node` ranks on a node."""
    local = tmp_path / "node"
    local.mkdir()
    (tmp_path / "run" / "logs").mkdir(parents=True)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(local))

    def become(rank: int, world: int, per_node: int) -> None:
        monkeypatch.setenv("WORLD_SIZE", str(world))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(per_node))
        monkeypatch.setenv("LOCAL_RANK", str(rank % per_node))

    return become


def test_the_first_rank_writes_one_file_with_a_row_of_each(tmp_path: Path, as_rank: As) -> None:
    run_dir = tmp_path / "run"
    for rank in (1, 2, 0):
        as_rank(rank, 3, 3)
        HeartbeatWriter(run_dir, Pulse(rank))._write()
    assert [beat.rank for beat in read_heartbeats(run_dir)] == [0, 1, 2]
    assert [path.name for path in (run_dir / "logs").iterdir()] == ["heartbeat-rank00000.json"]


def test_a_torn_row_and_what_a_killed_attempt_left_are_no_ranks(
    tmp_path: Path, as_rank: As
) -> None:
    run_dir = tmp_path / "run"
    as_rank(1, 2, 2)
    HeartbeatWriter(run_dir, Pulse(1))._write()  # and killed
    as_rank(0, 2, 2)
    writer = HeartbeatWriter(run_dir, Pulse(0), every_s=60)
    NodeBoard(run_dir).put("beat-7", '{"rank": 7, "ho')
    writer._write()
    assert [beat.rank for beat in read_heartbeats(run_dir)] == [0, 1]
    with HeartbeatWriter(run_dir, Pulse(0), every_s=60):
        pass
    assert [beat.rank for beat in read_heartbeats(run_dir)] == [0]


def test_an_unusable_temporary_directory_costs_only_the_rows(
    tmp_path: Path, as_rank: As, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "absent" / "deep"))
    as_rank(1, 2, 2)
    board = NodeBoard(tmp_path / "run")
    board.put("x", "y")
    assert board.get("x") == ""
    as_rank(0, 2, 2)
    HeartbeatWriter(tmp_path / "run", Pulse(0))._write()
    assert heartbeat_file(tmp_path / "run", 0).is_file()


def test_a_run_of_any_size_stays_in_its_budget(tmp_path: Path, as_rank: As) -> None:
    """The operations of one write and one look, times how often all ranks do them."""
    run_dir = tmp_path / "run"
    for world, per_node in ((8, 8), (64, 8), (1024, 8), (4096, 4)):
        per_second = 0.0
        for rank, times in ((0, world // per_node), (1, world - world // per_node)):
            as_rank(rank, world, per_node)
            writer = HeartbeatWriter(run_dir, Pulse(rank))
            with operations_under(run_dir) as seen:
                writer._write()
            per_second += times * len(seen) / writer._every_s
            watchdog = Watchdog(run_dir, Pulse(rank), HealthConfig(), lambda _: None)
            per_second += times / watchdog._look_s
        assert per_second <= BUDGET_PER_S, (world, per_node)


def test_a_small_run_is_as_quick_as_ever(tmp_path: Path, as_rank: As) -> None:
    as_rank(0, 16, 8)
    watchdog = Watchdog(tmp_path / "run", Pulse(0), HealthConfig(), lambda _: None)
    assert HeartbeatWriter(tmp_path / "run", Pulse(0))._every_s == 2
    assert watchdog._look_s == 1


def test_a_call_reaches_the_ranks_of_a_node_through_its_own_disk(
    tmp_path: Path, as_rank: As
) -> None:
    as_rank(1, 1024, 8)
    NodeBoard(tmp_path / "run").put("hang", "rank 1 on here")
    as_rank(2, 1024, 8)
    with operations_under(tmp_path / "run") as seen:
        assert NodeBoard(tmp_path / "run").get("hang") == "rank 1 on here"
    assert not seen
