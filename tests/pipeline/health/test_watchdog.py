"""A rank counts as hung after its limit, and the first call for stacks is the one that counts."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pipeline.health.config import HealthConfig
from pipeline.health.pulse import Pulse
from pipeline.health.watchdog import Watchdog, call_for_stacks
from pipeline.rundir.paths import hang_file

SOON_S = 30.0


class Ended(Watchdog):
    """Records why the watchdog would have ended the process."""

    def __init__(self, run_dir: Path, pulse: Pulse, config: HealthConfig, **options: float) -> None:
        super().__init__(run_dir, pulse, config, lambda failure: None, **options)
        self.reason = ""
        self.over = threading.Event()

    def _end(self, reason: str) -> None:
        self.reason = reason
        self.over.set()
        self._stop.set()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path


def test_a_rank_without_a_beat_has_hung(run_dir: Path) -> None:
    with Ended(run_dir, Pulse(0), HealthConfig(hang_timeout_s=0.2)) as watchdog:
        assert watchdog.over.wait(SOON_S)
    assert "no progress for" in watchdog.reason


def test_until_the_first_step_the_longer_patience_counts(run_dir: Path) -> None:
    pulse = Pulse(0)
    watchdog = Ended(run_dir, pulse, HealthConfig(hang_timeout_s=5), start_timeout_s=60)
    assert watchdog._patience_s() == 60
    with pulse.timed_step():
        pass
    assert watchdog._patience_s() == 5


def test_no_time_out_is_patience_without_end(run_dir: Path) -> None:
    watchdog = Ended(run_dir, Pulse(0), HealthConfig(hang_timeout_s=None), start_timeout_s=60)
    assert watchdog._patience_s() == float("inf")


def test_a_call_for_stacks_ends_those_who_heed_it(run_dir: Path) -> None:
    with Ended(run_dir, Pulse(0), HealthConfig(hang_timeout_s=20)) as watchdog:
        call_for_stacks(run_dir, "rank 3 on node7: no progress")
        call_for_stacks(run_dir, "rank 1 on node2: I waited too long")
        assert not watchdog.over.is_set()
        watchdog.heed_others()
        assert watchdog.over.wait(SOON_S)
    assert watchdog.reason == "asked for its stack by rank 3 on node7: no progress"


def test_rank_0_forgets_the_call_of_an_earlier_attempt(run_dir: Path) -> None:
    call_for_stacks(run_dir, "rank 3: of yesterday")
    with Ended(run_dir, Pulse(1), HealthConfig()):
        assert hang_file(run_dir).exists()
    with Ended(run_dir, Pulse(0), HealthConfig()):
        assert not hang_file(run_dir).exists()
