"""A rank that stalls: the others notice, everyone shows its stack, and the run says who it was."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.config import load_config
from pipeline.prepare import prepare_run
from pipeline.rundir import Failure, StopClass, first_failure
from tests import runs

pytestmark = pytest.mark.dist


@pytest.fixture
def stalled(tmp_path: Path) -> Iterator[list[psutil.Process]]:
    """Processes that a test has stopped; the fixture ends them with the test."""
    stopped: list[psutil.Process] = []
    yield stopped
    for process in stopped:
        if process.is_running():
            process.kill()


def prepare(root: Path, shards: Path, name: str, **fields: object) -> Path:
    """A run of two ranks that would go on for ever."""
    recipe, *overrides = runs.overrides(
        root, shards, name, tracking__enabled=False, schedule__epochs=10**6, **fields
    )
    return prepare_run(load_config(recipe, overrides))


def test_a_stopped_rank_makes_the_other_dump_its_stack_and_end_as_a_hang(
    tmp_path: Path, glyph_shards: Path, stalled: list[psutil.Process]
) -> None:
    run_dir = prepare(
        tmp_path,
        glyph_shards,
        "hung",
        health__hang_timeout_s=5,
        data__workers=1,
        eval__every_epochs=10**6,
    )
    ranks = runs.start_ranks(run_dir, 2)
    runs.wait_for_step(run_dir, 2, ranks)
    stalled.append(psutil.Process(ranks[1].pid))
    stalled[0].suspend()
    helpers = psutil.Process(ranks[0].pid).children(recursive=True)

    assert ranks[0].wait(timeout=120) == 1

    output = runs.output_of(run_dir, 0)
    assert "no progress for 5 s (health.hang_timeout_s); phase " in output
    assert "distributed_c10d.py" in stacks(run_dir, 0)  # whichever collective it was
    failure = cause(run_dir)
    assert (failure.stop_class, failure.rank) == (StopClass.HANG, 0)
    assert failure.consequence  # it waits in a collective: the culprit is another rank
    status = json.loads((run_dir / "status.json").read_text())
    assert (status["state"], status["stop_class"], status["exit_status"]) == ("failed", "hang", 1)

    _, orphans = psutil.wait_procs(helpers, timeout=60)
    stalled.extend(orphans)
    assert not orphans

    # Had it only slept: it learns that the others are gone, and does not train on alone.
    stalled[0].resume()
    assert ranks[1].wait(timeout=120) == 1


def test_a_rank_whose_data_stall_is_named_as_straggler_then_lost_within_the_short_time_out(
    tmp_path: Path, glyph_shards: Path, stalled: list[psutil.Process]
) -> None:
    run_dir = prepare(
        tmp_path,
        glyph_shards,
        "stalled",
        engine__step_timeout_s=6,
        health__hang_timeout_s="null",
        data__workers=1,
        eval__every_epochs=10**6,  # its loader processes come and go
    )
    ranks = runs.start_ranks(run_dir, 2)
    runs.wait_for_step(run_dir, 2, ranks)
    # The processes that read its data: the rank itself is well and waits for a batch.
    readers = psutil.Process(ranks[1].pid).children(recursive=True)
    stalled.extend(readers)
    for _ in range(100):  # in step after step, or it would be taken for noise
        suspend_for(0.4, readers, then=0.03)
        if "straggler: rank 1 on" in runs.output_of(run_dir, 0):
            break
    else:
        pytest.fail(f"no straggler in {runs.output_of(run_dir, 0)}")
    for process in readers:
        process.suspend()

    assert [process.wait(timeout=120) for process in ranks] == [1, 1]

    assert "Timed out waiting 6000ms" in runs.output_of(run_dir, 0)
    assert "asked for its stack by rank 0" in runs.output_of(run_dir, 1)
    assert "pipeline/data/loader.py" in stacks(run_dir, 1)
    failure = cause(run_dir)  # not rank 0, which was the first to fail
    assert (failure.stop_class, failure.rank) == (StopClass.HANG, 1)


def test_loader_processes_leave_with_a_rank_that_is_killed(
    tmp_path: Path, glyph_shards: Path
) -> None:
    run_dir = prepare(tmp_path, glyph_shards, "orphans", data__workers=1)
    (rank,) = runs.start_ranks(run_dir, 1)
    runs.wait_for_step(run_dir, 2, [rank])
    processes = psutil.Process(rank.pid).children(recursive=True)
    assert processes
    rank.kill()
    rank.wait()
    _, alive = psutil.wait_procs(processes, timeout=30)
    for process in alive:
        process.kill()
    assert alive == []


def suspend_for(seconds: float, processes: list[psutil.Process], then: float) -> None:
    """Stop the processes for a while, then let them work for `then` seconds."""
    for process in processes:
        process.suspend()
    time.sleep(seconds)
    for process in processes:
        process.resume()
    time.sleep(then)


def stacks(run_dir: Path, rank: int) -> str:
    return (run_dir / "logs" / f"stacks-rank{rank:05d}.txt").read_text()


def cause(run_dir: Path) -> Failure:
    failure = first_failure(run_dir)
    assert failure is not None
    return failure


def test_an_unfit_node_stops_all_ranks_before_the_start_and_is_named(
    tmp_path: Path, glyph_shards: Path
) -> None:
    run_dir = prepare(tmp_path, glyph_shards, "unfit")
    ranks = runs.start_ranks(run_dir, 2, of_rank={1: {"TMPDIR": "/nonexistent/scratch"}})

    assert [process.wait(timeout=120) for process in ranks] == [1, 1]

    failure = cause(run_dir)
    assert (failure.stop_class, failure.rank) == (StopClass.NODE_FAULT, 1)
    assert f"{failure.host}: TMPDIR=/nonexistent/scratch cannot be written" in failure.error
    assert "TMPDIR=/nonexistent/scratch" in runs.output_of(run_dir, 0)
    assert not (run_dir / "checkpoints").exists()
