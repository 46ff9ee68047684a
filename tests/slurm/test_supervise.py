"""The batch script's judgement of what the ranks left; test_faults.py runs all of it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from pipeline.rundir import (
    ATTEMPTS_FILE,
    JOB_FILE,
    Attempt,
    End,
    Failure,
    RankMark,
    StopClass,
    append_attempt,
    read_attempts,
)
from slurm import queue, supervise
from slurm.errors import ClusterError
from slurm.judge import gather, judge
from slurm.profile import ClusterProfile
from slurm.record import JobRecord, Resources, find_record, read_record

ENDLESS = {"JobState": "RUNNING", "Requeue": "1", "EndTime": "Unknown"}


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    (tmp_path / "logs").mkdir()
    return tmp_path


def leave(
    run_dir: Path, *statuses: int | None, state: str = "running", stop_class: str = ""
) -> None:
    """The marks of the ranks, on node0, node1, ..., and the status of rank 0."""
    for rank, status in enumerate(statuses):
        mark = RankMark(rank=rank, node=f"node{rank}", attempt=queue.own_attempt(), status=status)
        mark.write(run_dir)
    content = {"state": state, "stop_class": stop_class, "reason": "why"}
    content["attempt"] = queue.own_attempt()
    (run_dir / "status.json").write_text(json.dumps(content))


def fail(run_dir: Path, rank: int, stop_class: str, *, consequence: bool = False) -> None:
    record = {
        "rank": rank, "host": "vm", "stop_class": stop_class, "error": "E: x",
        "consequence": consequence, "time": time.time(), "traceback": "",
        "attempt": queue.own_attempt(),
    }  # fmt: skip
    (run_dir / "logs" / f"failure-rank{rank:05d}.json").write_text(json.dumps(record))


def end(run_dir: Path, srun_status: int = 0, **job: str) -> End:
    record = JobRecord(
        profile=ClusterProfile(grace_s=60),
        resources=Resources(nodes=2),
        log=run_dir / "logs" / "7_0_log.out",
    )
    attempt = queue.own_attempt()
    return judge(gather(run_dir, attempt, srun_status, ENDLESS | job, record))


def test_a_finished_run(run_dir: Path) -> None:
    leave(run_dir, 0, 0, state="finished", stop_class="finished")
    assert end(run_dir) == End(StopClass.FINISHED, "why")


def test_a_saved_run_was_preempted_or_its_time_was_up_or_a_person_ended_it(run_dir: Path) -> None:
    leave(run_dir, 75, 75, state="stopped", stop_class="preempted")
    assert end(run_dir) == End(StopClass.PREEMPTED, "why")
    soon = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 100))
    assert end(run_dir, EndTime=soon) == End(StopClass.TIME_LIMIT, "why")
    assert end(run_dir, Requeue="0") == End(StopClass.CANCELLED, "why")


def test_a_person_who_killed_the_job_is_no_fault_of_a_node(run_dir: Path) -> None:
    leave(run_dir, None, None, state="cancelled", stop_class="cancelled")
    assert end(run_dir, 137) == End(StopClass.CANCELLED, "why")


def test_a_rank_without_a_word_was_killed_and_its_node_is_to_blame(run_dir: Path) -> None:
    leave(run_dir, 1, None)
    fail(run_dir, 0, "node_fault", consequence=True)
    found = end(run_dir, 137)
    assert found == End(
        StopClass.NODE_FAULT, "rank 1 on node1 ended without a word (killed by SIGKILL)", "node1"
    )


@pytest.mark.parametrize(
    "line",
    [
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks ...",
        "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0 cgroup. Some of your ...",
        "srun: error: node1: task 1: Out Of Memory",
    ],
)
def test_a_rank_that_the_kernel_killed_for_its_memory_is_not_tried_again(
    run_dir: Path, line: str
) -> None:
    leave(run_dir, 1, None)
    (run_dir / "logs" / "7_0_log.out").write_text(f"step 1\n{line}\nmore\n")
    found = end(run_dir, 137)
    assert found.stop_class == "out_of_memory"
    assert found.node is None


def test_srun_telling_the_others_to_leave_is_no_preemption(run_dir: Path) -> None:
    leave(run_dir, None, 75)
    assert end(run_dir, 137).stop_class == "node_fault"
    leave(run_dir, 75, 75)
    assert end(run_dir, 75) == End(StopClass.PREEMPTED, "a signal before training")


def test_nobody_knows_who_was_first_when_all_are_gone(run_dir: Path) -> None:
    leave(run_dir, None, None)
    found = end(run_dir, 137)
    assert found.stop_class == "node_fault"
    assert found.node is None


@pytest.mark.parametrize("kind", ["non_finite", "disk_full", "crash", "configuration", "hang"])
def test_the_failure_of_a_rank_is_the_end_and_no_node_is_blamed(run_dir: Path, kind: str) -> None:
    leave(run_dir, 1, 1)
    fail(run_dir, 0, "node_fault", consequence=True)
    fail(run_dir, 1, kind)
    assert end(run_dir, 1) == End(StopClass(kind), "rank 1 on node1: E: x")


def test_a_node_that_failed_its_preflight_is_blamed_by_its_slurm_name(run_dir: Path) -> None:
    leave(run_dir, 1, 1)
    fail(run_dir, 1, "node_fault")
    assert end(run_dir, 1).node == "node1"


def test_a_rank_that_never_started_blames_no_healthy_node(run_dir: Path) -> None:
    leave(run_dir, 75)
    missing = "1 of the ranks did not start (srun status 1): see the log"
    assert end(run_dir, 1) == End(StopClass.NODE_FAULT, missing)
    leave(run_dir, None)
    assert end(run_dir, 1) == End(StopClass.NODE_FAULT, missing)


def test_a_hang_is_a_hang_though_all_waited_for_each_other(run_dir: Path) -> None:
    leave(run_dir, None, None)
    fail(run_dir, 0, "hang", consequence=True)
    assert end(run_dir, 1) == End(StopClass.HANG, "rank 0 on node0: E: x")


def test_what_an_earlier_attempt_left_does_not_count(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    leave(run_dir, 75, 75, state="stopped", stop_class="preempted")
    fail(run_dir, 1, "non_finite")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert end(run_dir, 1) == End(
        StopClass.NODE_FAULT, "2 of the ranks did not start (srun status 1): see the log"
    )


def test_an_error_outside_of_training_is_a_crash_and_no_fault_of_the_node(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(run_dir, None, 1)
    monkeypatch.setenv("VMP_ATTEMPT", queue.own_attempt())
    Failure.of(1, ImportError("no torch"), StopClass.CRASH).write(run_dir)
    found = end(run_dir, 1)
    assert found == End(StopClass.CRASH, "rank 1 on node1: ImportError: no torch")
    told = Failure.model_validate_json((run_dir / "logs" / "failure-rank00001.json").read_text())
    assert told.rank == 1  # read by `vmp jobs logs` like one of training itself


def test_an_attempt_that_slurm_itself_requeued_is_noted_once(run_dir: Path) -> None:
    checkpoint = run_dir / "checkpoints" / "step-00000040"
    checkpoint.mkdir(parents=True)
    (checkpoint / "COMMITTED").touch()
    supervise.note_lost_attempt(run_dir)
    supervise.note_lost_attempt(run_dir)
    (noted,) = read_attempts(run_dir)
    assert (noted.job_id, noted.restart, noted.step) == ("7", 1, 40)
    assert noted.action == "requeued by SLURM"


@pytest.mark.parametrize("half", ["", '{"rank": 1, "no', "\0\0\0\0"])
def test_a_file_cut_short_does_not_keep_the_supervisor_from_its_work(
    run_dir: Path, half: str
) -> None:
    leave(run_dir, 1, None)
    for name in ("logs/rank00001.json", "logs/failure-rank00001.json", "status.json", JOB_FILE):
        (run_dir / name).write_text(half)
    assert end(run_dir, 137).stop_class == "node_fault"
    assert read_record(run_dir) == JobRecord()
    with pytest.raises(ClusterError, match=r"job\.json: not the whole record of a job"):
        find_record(run_dir)


def test_what_else_may_lie_there_does_not_keep_it_from_its_work(run_dir: Path) -> None:
    leave(run_dir, 1, None)
    for name in ("step-00000040.bak", "mine", "step-x"):
        (run_dir / "checkpoints" / name).mkdir(parents=True)
        (run_dir / "checkpoints" / name / "COMMITTED").touch()
    (run_dir / "logs" / "failure-rank00003.json").write_text("{}")
    (run_dir / "logs" / "failure-rank00004.json").symlink_to("nowhere")
    mark = run_dir / "logs" / "rank00001.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"of": "tomorrow"}))
    assert end(run_dir, 137).node == "node1"
    supervise.note_lost_attempt(run_dir)
    assert read_attempts(run_dir)[-1].step == -1


def test_more_ranks_than_a_default_record_knows_are_not_missing(run_dir: Path) -> None:
    leave(run_dir, 0, None)
    found = judge(gather(run_dir, queue.own_attempt(), 137, ENDLESS, JobRecord()))
    assert "rank 1 on node1 ended without a word" in found.reason


def test_half_a_line_does_not_swallow_the_next_attempt(run_dir: Path) -> None:
    path = run_dir / ATTEMPTS_FILE
    first, second = (Attempt(job_id=job, stop_class="node_fault") for job in "78")
    append_attempt(run_dir, first)
    with path.open("a") as file:
        file.write('{"job_id": "7", "stop_c')
    append_attempt(run_dir, second)
    assert read_attempts(run_dir) == [first, second]
    assert b"\n\n" not in path.read_bytes()
