"""Every kind of end has an answer, and patience has its bounds."""

from __future__ import annotations

import pytest

from pipeline.rundir import Attempt, End, StopClass
from slurm.policy import ADVICE, FAULTS, STOPPED_IN_TIME, RetryPolicy, decide


def fault(step: int) -> Attempt:
    return Attempt(job_id="1", stop_class="node_fault", step=step)


def test_every_class_of_end_is_answered() -> None:
    assert ADVICE.keys() | FAULTS | STOPPED_IN_TIME | {"finished"} == set(StopClass)


@pytest.mark.parametrize("kind", sorted(ADVICE))
def test_what_would_happen_again_is_not_retried(kind: str) -> None:
    decision = decide(End(StopClass(kind), "why", "node1"), [], 10, 0, RetryPolicy())
    assert not decision.requeue
    assert decision.why == ADVICE[kind]


@pytest.mark.parametrize("kind", sorted(STOPPED_IN_TIME))
def test_a_stop_with_a_checkpoint_goes_on_at_once_until_the_budget_is_spent(kind: str) -> None:
    policy = RetryPolicy(max_requeues=2)
    assert decide(End(StopClass(kind), ""), [fault(5)] * 9, 5, 1, policy) == (
        True, "a checkpoint is committed", 0, None,
    )  # fmt: skip
    assert not decide(End(StopClass(kind), ""), [], 5, 2, policy).requeue


def test_faults_in_a_row_back_off_and_end() -> None:
    policy = RetryPolicy(max_faults=4, backoff_s=60, max_backoff_s=100)
    end = End(StopClass.NODE_FAULT, "killed", "node2")
    delays = [decide(end, [fault(7)] * before, 7, before, policy).delay_s for before in range(4)]
    assert delays == [0, 60, 100, 100]
    last = decide(end, [fault(7)] * 4, 7, 4, policy)
    assert not last.requeue
    assert "5 faults in a row without progress (max_faults=4)" in last.why


def test_a_newer_checkpoint_starts_the_count_again() -> None:
    history = [fault(7)] * 3
    end = End(StopClass.HANG, "no step")
    assert not decide(end, history, 7, 3, RetryPolicy(max_faults=3)).requeue
    assert decide(end, history, 8, 3, RetryPolicy(max_faults=3)) == (
        True, "fault 1 of 3 in a row", 0, None,
    )  # fmt: skip


def test_the_node_at_fault_is_left_out_when_asked() -> None:
    end = End(StopClass.NODE_FAULT, "killed", "node2")
    assert decide(end, [], -1, 0, RetryPolicy()).exclude == "node2"
    assert decide(end, [], -1, 0, RetryPolicy(exclude_faulty=False)).exclude is None
