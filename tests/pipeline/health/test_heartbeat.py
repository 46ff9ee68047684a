"""Signs of life on disk."""

from __future__ import annotations

import time
from pathlib import Path

from pipeline.health.heartbeat import HeartbeatWriter
from pipeline.health.pulse import Pulse
from pipeline.rundir import Phase, forget_heartbeats, read_heartbeats


def test_heartbeats_follow_the_pulse_and_end_with_the_phase_end(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    pulse = Pulse(rank=3)
    with HeartbeatWriter(tmp_path, pulse, every_s=0.01):
        pulse.begin(step=40, total_steps=90)
        with pulse.timed_step():
            pass
        with pulse.during(Phase.EVAL):
            _wait_for(tmp_path, Phase.EVAL)
        _wait_for(tmp_path, Phase.TRAIN)
    [last] = read_heartbeats(tmp_path)
    assert (last.rank, last.step, last.total_steps, last.phase) == (3, 41, 90, Phase.END)
    assert last.step_s is not None
    assert last.step_s >= 0


def test_a_dead_disk_does_not_disturb_the_rank(tmp_path: Path) -> None:
    with HeartbeatWriter(tmp_path / "gone", Pulse(rank=0), every_s=0.01) as writer:
        time.sleep(0.05)
        assert writer._thread.is_alive()
    assert read_heartbeats(tmp_path / "gone") == []


def test_ranks_of_a_larger_attempt_are_forgotten_and_torn_files_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for rank in range(3):
        with HeartbeatWriter(tmp_path, Pulse(rank)):
            pass
    forget_heartbeats(tmp_path, from_rank=2)
    assert [h.rank for h in read_heartbeats(tmp_path)] == [0, 1]
    (tmp_path / "logs" / "heartbeat-rank00000.json").write_text('{"rank": 0, "ho')
    assert [h.rank for h in read_heartbeats(tmp_path)] == [1]


def test_progress_is_a_step_a_batch_or_a_phase() -> None:
    pulse = Pulse(rank=0)
    assert pulse.step_s() is None
    beats = []
    for _ in pulse.each([1, 2, 3]):
        beats.append(pulse.beats)
    assert beats == [0, 1, 2]  # a batch counts when it is done, not when it is begun
    with pulse.during(Phase.SAVE):
        assert pulse.beats == 4
    with pulse.timed_step():
        assert pulse.beats == 5
    assert pulse.beats == 6
    assert pulse.step == 1


def _wait_for(run_dir: Path, phase: Phase) -> None:
    deadline = time.monotonic() + 60
    while [h.phase for h in read_heartbeats(run_dir)] != [phase]:
        assert time.monotonic() < deadline
        time.sleep(0.005)
