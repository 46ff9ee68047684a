"""Sharding that is killed at any instants, with all its processes, seals the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from data_prep.options import ShardConfig
from tests.kills import kills, wait_until_gone

pytestmark = pytest.mark.slow

# Imports come before the word: what is killed is the work.
RUN = """
import sys
from data_prep.options import ShardConfig
from data_prep.shard import shard
config = ShardConfig.model_validate_json(sys.argv[1])
print("ready", flush=True)
shard(config, show_progress=False)
"""


@contextmanager
def started(config: ShardConfig) -> Iterator[subprocess.Popen[str]]:
    """Sharding in a session of its own, about to begin; nothing of it outlives the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, config.model_dump_json()],
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        wait_until_gone(process.pid)


def finish(config: ShardConfig) -> float:
    """Shard to the end; return the seconds that it took."""
    with started(config) as process:
        began = time.monotonic()
        assert process.wait(timeout=300) == 0
        return time.monotonic() - began


def content(out: str) -> dict[str, str]:
    """Every file with its sha256; that of a record is left out, as it tells the time it took."""
    files = [path for path in Path(out).iterdir() if path.is_file()]
    return {
        path.name: ""
        if path.name.endswith(".record.json")
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.mark.parametrize("jobs", [1, 2])
def test_kills_at_random_instants_change_no_byte(
    csv_config: ShardConfig, tmp_path: Path, jobs: int
) -> None:
    chance = random.Random(jobs)
    whole_s = finish(csv_config.model_copy(update={"jobs": jobs}))
    expected = content(csv_config.out)
    assert {"manifest.json", "index.parquet", "quarantine.jsonl"} < expected.keys()
    out = tmp_path / "killed"
    config = csv_config.model_copy(update={"out": str(out), "jobs": jobs})
    made, wanted = 0, kills(short=6) if jobs == 1 else kills(short=6) // 3  # slower
    while made < wanted:
        with started(config) as process:
            time.sleep(chance.uniform(0, whole_s))
            was_done = process.poll() is not None
        if was_done:  # before its time: from the beginning again
            assert process.returncode == 0
            assert content(str(out)) == expected
            shutil.rmtree(out)
            continue
        made += 1
        if (out / "manifest.json").exists():  # it is written last
            assert expected.items() <= content(str(out)).items()

    finish(config)

    assert content(str(out)) == expected


@pytest.mark.parametrize("which", [0, 1])
def test_the_other_job_takes_over_from_a_killed_one(
    csv_config: ShardConfig, tmp_path: Path, which: int
) -> None:
    """Who started both waits for the first one first, so that the second stays as a zombie."""
    finish(csv_config)
    config = csv_config.model_copy(update={"out": str(tmp_path / "killed"), "jobs": 2})
    with started(config) as process:
        job_with_a_claim(process, which, Path(config.out) / ".prep/claims").kill()

        assert process.wait(timeout=100) == 0

    assert content(config.out) == content(csv_config.out)


def job_with_a_claim(process: subprocess.Popen[str], which: int, claims: Path) -> psutil.Process:
    """The first or second job, once it holds a shard."""
    while process.poll() is None:
        below = psutil.Process(process.pid).children()
        jobs = [each for each in below if "data_prep.jobs.job" in each.cmdline()]
        for path in claims.glob("[!.]*") if claims.is_dir() else ():
            with suppress(FileNotFoundError):  # released meanwhile
                owner = json.loads(path.read_bytes())["pid"]
                if len(jobs) == 2 and jobs[which].pid == owner:
                    return jobs[which]
        time.sleep(0.005)
    raise AssertionError("the jobs were done before one could be killed")
