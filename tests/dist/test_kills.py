"""Training with loader workers, killed at random instants: the same bits, each sample once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pipeline import rundir
from pipeline.audit.audit import audit
from pipeline.audit.result import Verdict
from pipeline.rundir import State, StopClass
from pipeline.rundir.metrics import read_metrics
from pipeline.rundir.samples import read_samples
from tests import runs
from tests.dist.conftest import STEPS
from tests.kills import kills, wait_until_gone

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(3000)]

CHECKPOINT_EVERY = 3
# In turn, so that a short schedule has each; "all" most often, as it leaves the least.
KINDS = ("all", "loader", "rank", "launcher", "all")


def kill(kind: str, process: subprocess.Popen[str], chance: random.Random) -> None:
    """SIGKILL all processes of a training at once, its launcher alone, or a rank or loader."""
    if kind == "all":
        os.killpg(process.pid, signal.SIGKILL)
    elif kind == "launcher":
        process.kill()
    elif others := found(process, kind):  # else the run has just come to its end
        with suppress(psutil.NoSuchProcess):
            chance.choice(others).kill()


def found(process: subprocess.Popen[str], kind: str) -> list[psutil.Process]:
    """The ranks, or the loader processes, of a training that goes on."""
    ranks, servers = [], set()
    below = psutil.Process(process.pid).children(recursive=True)
    for each in below:
        with suppress(psutil.NoSuchProcess):
            line = " ".join(each.cmdline())
            if "pipeline.training.train" in line:
                ranks.append(each)
            elif "multiprocessing.forkserver" in line:
                servers.add(each.pid)
    if kind == "rank":
        return ranks
    return [each for each in below if each.is_running() and each.ppid() in servers]


def train_to(step: int, process: subprocess.Popen[str], run_dir: Path) -> bool:
    """Wait until the run has done `step`; False when it is over before."""
    deadline = time.monotonic() + 300
    while process.poll() is None:
        assert time.monotonic() < deadline, f"no step {step}"
        rows = read_metrics(run_dir)
        if any(row["step"] >= step for row in rows) and found(process, "loader"):
            return True
        time.sleep(0.02)
    assert process.returncode == 0, process.communicate()[0]
    return False


def check_word(kind: str, run_dir: Path) -> None:
    """What the killed training says of its end."""
    status = rundir.read_status(run_dir)
    if kind == "launcher":
        over = rundir.newest_step(run_dir) == STEPS  # it may have ended before the word came
        assert status.state is State.STOPPED or (over and status.state is State.FINISHED)
    elif kind == "loader":
        failure = rundir.first_failure(run_dir)
        assert failure is not None
        assert failure.stop_class is StopClass.NODE_FAULT
    elif kind == "rank":
        assert status.state in (State.FAILED, State.RUNNING)


def test_kills_at_random_instants_change_no_bit(
    root: Path, glyph_shards: Path, undisturbed: Path
) -> None:
    chance = random.Random(14)
    expected = read_samples(undisturbed)
    made, rounds = 0, 0
    while made < kills(short=4):
        rounds += 1
        run_dir = root / f"killed-{rounds}"
        command = runs.overrides(
            root,
            glyph_shards,
            run_dir.name,
            schedule__max_steps=STEPS,
            data__workers=1,
            checkpoint__every_steps=CHECKPOINT_EVERY,
        )
        over, kind = False, KINDS[0]
        while made < kills(short=4) and not over:
            process = runs.start("train", *command)
            try:
                goal = max(0, rundir.newest_step(run_dir)) + chance.randint(1, 9)
                if train_to(min(goal, STEPS - 1), process, run_dir):
                    time.sleep(chance.uniform(0, 0.1))
                    kind = KINDS[made % len(KINDS)]
                    print(f"kill {made} of {run_dir.name}: {kind} after step {goal}", flush=True)
                    kill(kind, process, chance)
                    made += 1
                output, _ = process.communicate(timeout=120)
                over = process.returncode == 0
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            wait_until_gone(process.pid)
            if not over:
                check_word(kind, run_dir)
            committed = rundir.newest_step(run_dir)
            seen = {s: keys for s, keys in read_samples(run_dir).items() if s < committed}
            assert seen == {s: keys for s, keys in expected.items() if s < committed}, output
            if committed > 0:
                audited = audit(run_dir)
                assert audited.verdict is Verdict.PROVEN, audited.reason
        if not over:
            runs.run("train", *command)

        runs.assert_bitwise_equal(runs.final_state(undisturbed), runs.final_state(run_dir))
        assert read_samples(run_dir) == expected
        audited = audit(run_dir)
        assert (audited.verdict, audited.steps) == (Verdict.PROVEN, STEPS), audited.reason
        runs.assert_one_mlflow_run(run_dir, STEPS)
