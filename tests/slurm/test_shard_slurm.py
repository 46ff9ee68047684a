"""Sharding as a SLURM array gives the manifest of a local run, whichever process dies."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from data_prep.schema import MANIFEST_NAME, Manifest
from tests import runs

pytestmark = [pytest.mark.dist, pytest.mark.slow]


def arguments(videos: Path, out: Path, *more: str) -> list[str]:
    return [
        *("data", "shard", "--format", "csv", "--annotations", str(videos / "annotations.csv")),
        *("--videos", str(videos), "--out", str(out), "--clips-per-shard", "8", *more),
    ]


def digest(shards: Path) -> str:
    return Manifest.model_validate_json((shards / MANIFEST_NAME).read_text()).digest


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "profile.yaml"
    path.write_text("cpus_per_task: 1\ntime_min: 30\n")
    return path


@pytest.fixture(scope="module")
def local(glyph_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local") / "shards"
    runs.run(*arguments(glyph_videos, out))
    return out


def elements(out: Path) -> Iterator[psutil.Process]:
    """The Python processes of the array elements that work for `out`."""
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "submitit.core._submit" in line and any(str(out.parent) in part for part in line):
            yield process


def test_three_elements_one_killed_give_the_local_manifest(
    slurm: Path, glyph_videos: Path, local: Path, tmp_path: Path, profile: Path
) -> None:
    out = tmp_path / "shards"
    options = ("--cluster", "slurm", "--jobs", "3", "--profile", str(profile))
    process = runs.start(*arguments(glyph_videos, out, *options))
    while len(list(out.glob("*.record.json"))) < 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    victim = next(elements(out))
    victim.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=120)

    assert process.returncode == 0, output
    assert "3 elements" in output
    assert digest(out) == digest(local)
    assert "samples: train 100, val 24" in runs.run(*arguments(glyph_videos, out, *options))


def test_when_all_elements_die_the_same_command_goes_on(
    slurm: Path, glyph_videos: Path, local: Path, tmp_path: Path, profile: Path
) -> None:
    out = tmp_path / "shards"
    command = arguments(
        glyph_videos, out, "--cluster", "slurm", "--jobs", "2", "--profile", str(profile)
    )
    process = runs.start(*command)
    while not list(out.glob("*.record.json")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    for element in elements(out):
        os.kill(element.pid, signal.SIGSTOP)  # none may take over before all are dead
    done = len(list(out.glob("*.record.json")))
    for element in elements(out):
        element.kill()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    last = output.strip().splitlines()[-1]
    assert last.startswith("error: "), output
    assert f"{16 - done} of 16 shards are not done" in last
    assert "2 FAILED" in last
    assert not (out / MANIFEST_NAME).exists()

    runs.run(*command)

    assert digest(out) == digest(local)


def test_a_refused_array_is_one_line_and_status_2(
    slurm: Path, glyph_videos: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("partition: nowhere\n")
    options = ("--cluster", "slurm", "--jobs", "2", "--profile", str(wrong))
    output = runs.run(*arguments(glyph_videos, tmp_path / "shards", *options), expect=2)
    assert "Invalid partition name specified" in output.strip().splitlines()[-1]


def test_sharding_ignores_the_signals_of_preemption(
    slurm: Path, glyph_videos: Path, local: Path, tmp_path: Path, profile: Path
) -> None:
    """A signal that killed the decoders would make good clips look like poison."""
    out = tmp_path / "shards"
    options = ("--cluster", "slurm", "--jobs", "1", "--profile", str(profile))
    process = runs.start(*arguments(glyph_videos, out, *options))
    while not list(out.glob("*.record.json")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    jobs = subprocess.run(["squeue", "-h", "-o", "%A"], capture_output=True, text=True).stdout
    for name in ("USR2", "TERM", "USR2"):
        subprocess.run(["scancel", f"--signal={name}", *jobs.split()], check=True)
        time.sleep(0.2)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert digest(out) == digest(local)
