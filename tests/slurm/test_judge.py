"""Each rule of the judgement alone, and their order; test_supervise uses real files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pipeline.rundir import End, Failure, RankMark, RunStatus, State, StopClass
from slurm import judge
from slurm.judge import RULES, Evidence


def mark(rank: int, status: int | None, node: str = "") -> RankMark:
    return RankMark(rank=rank, node=node or f"node{rank}", attempt="7.0", status=status)


def failure(stop_class: StopClass, rank: int = 1, *, consequence: bool = False) -> Failure:
    return Failure(
        stop_class=stop_class, error="E: x", rank=rank, host="vm", time=0, attempt="7.0",
        consequence=consequence, traceback="",
    )  # fmt: skip


NOTHING = Evidence(
    status=RunStatus(state=State.RUNNING),
    failure=None,
    ranks=(mark(0, 1), mark(1, 1)),
    missing=0,
    srun_status=137,
    may_requeue=True,
    limit_is_near=False,
    kernel_killed=False,
)
SAVED = RunStatus(state=State.STOPPED, stop_class=StopClass.PREEMPTED, reason="signal SIGUSR2")
KILLED = (mark(0, 1), mark(1, None))

CASES: list[tuple[Callable[[Evidence], End | None], Evidence, End]] = [
    (
        judge.finished,
        replace(NOTHING, status=RunStatus(state=State.FINISHED)),
        End(StopClass.FINISHED),
    ),
    (
        judge.asked_to_stay_down,
        replace(NOTHING, status=SAVED, may_requeue=False, limit_is_near=True),
        End(StopClass.CANCELLED, "signal SIGUSR2"),
    ),
    (
        judge.stopped_with_a_checkpoint,
        replace(NOTHING, status=SAVED),
        End(StopClass.PREEMPTED, "signal SIGUSR2"),
    ),
    (
        judge.stopped_with_a_checkpoint,
        replace(NOTHING, status=SAVED, limit_is_near=True),
        End(StopClass.TIME_LIMIT, "signal SIGUSR2"),
    ),
    (
        judge.killed_by_a_person,
        replace(NOTHING, status=RunStatus(state=State.CANCELLED, reason="vmp jobs cancel")),
        End(StopClass.CANCELLED, "vmp jobs cancel"),
    ),
    (
        judge.lost_a_loader_for_memory,
        replace(NOTHING, failure=failure(StopClass.NODE_FAULT), kernel_killed=True),
        End(
            StopClass.OUT_OF_MEMORY,
            "rank 1 on vm: E: x, which the kernel killed (oom_kill)",
        ),
    ),
    (
        judge.failed_rank,
        replace(NOTHING, failure=failure(StopClass.NON_FINITE)),
        End(StopClass.NON_FINITE, "rank 1 on node1: E: x"),
    ),
    (
        judge.failed_rank,
        replace(NOTHING, failure=failure(StopClass.NODE_FAULT)),
        End(StopClass.NODE_FAULT, "rank 1 on node1: E: x", "node1"),
    ),
    (
        judge.failed_rank,
        replace(NOTHING, failure=failure(StopClass.HANG, consequence=True)),
        End(StopClass.HANG, "rank 1 on node1: E: x"),
    ),
    (
        judge.left_before_training,
        replace(NOTHING, ranks=(mark(0, 0), mark(1, 75))),
        End(StopClass.PREEMPTED, "a signal before training"),
    ),
    (
        judge.left_before_training,
        replace(NOTHING, ranks=(mark(0, 75), mark(1, 75)), limit_is_near=True),
        End(StopClass.TIME_LIMIT, "a signal before training"),
    ),
    (
        judge.did_not_start,
        replace(NOTHING, ranks=(mark(0, 75),), missing=1, srun_status=1),
        End(
            StopClass.NODE_FAULT,
            "1 of the ranks did not start (srun status 1): see the log",
        ),
    ),
    (
        judge.killed_for_memory,
        replace(NOTHING, ranks=KILLED, kernel_killed=True),
        End(
            StopClass.OUT_OF_MEMORY,
            "rank 1 on node1 ended for want of host memory (oom_kill)",
        ),
    ),
    (
        judge.killed_rank,
        replace(NOTHING, ranks=KILLED),
        End(
            StopClass.NODE_FAULT,
            "rank 1 on node1 ended without a word (killed by SIGKILL)",
            "node1",
        ),
    ),
    (
        judge.killed_rank,
        replace(NOTHING, ranks=(mark(0, None), mark(1, None))),
        End(
            StopClass.NODE_FAULT,
            "rank 0 on node0, rank 1 on node1 ended without a word (killed by SIGKILL)",
        ),
    ),
    (judge.lost_each_other, NOTHING, End(StopClass.NODE_FAULT, "the ranks lost each other")),
    (
        judge.lost_each_other,
        replace(NOTHING, failure=failure(StopClass.NODE_FAULT, consequence=True)),
        End(StopClass.NODE_FAULT, "the ranks lost each other: rank 1: E: x"),
    ),
]


@pytest.mark.parametrize(("rule", "evidence", "end"), CASES)
def test_a_rule_decides_its_case_and_no_rule_before_it_does(
    rule: Callable[[Evidence], End | None], evidence: Evidence, end: End
) -> None:
    assert rule(evidence) == end
    assert judge.judge(evidence) == end
    before = RULES[: RULES.index(rule)]
    assert [earlier(evidence) for earlier in before] == [None] * len(before)


def test_every_rule_has_a_case_and_only_the_last_always_applies() -> None:
    assert {rule for rule, _, _ in CASES} == set(RULES)
    for rule in RULES[:-1]:
        assert rule(NOTHING) is None, f"{rule.__name__} applies to nothing in particular"


def test_a_word_comes_before_a_failure_and_a_failure_before_a_conclusion() -> None:
    everything = replace(
        NOTHING,
        status=SAVED,
        failure=failure(StopClass.CRASH),
        ranks=(mark(0, None),),
        missing=1,
        kernel_killed=True,
    )
    assert judge.judge(everything).stop_class is StopClass.PREEMPTED
    silent = replace(everything, status=RunStatus(state=State.NEW))
    assert judge.judge(silent).stop_class is StopClass.CRASH
    assert "did not start" in judge.judge(replace(silent, failure=None)).reason
    alone = replace(silent, failure=None, missing=0)
    assert judge.judge(alone).stop_class is StopClass.OUT_OF_MEMORY
