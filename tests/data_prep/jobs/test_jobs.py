"""Sharding with several jobs, deaths at any moment and other places to write to."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest

from data_prep.errors import DataError
from data_prep.jobs.job import run_shard_worker
from data_prep.jobs.pool import Caps
from data_prep.jobs.progress import RunProgress, read_progress
from data_prep.options import ShardConfig
from data_prep.schema import Manifest
from data_prep.sealed.seal import seal
from data_prep.sealed.verify import verify
from data_prep.shard import prepare, sealed, shard
from data_prep.workdir import Workdir
from tests.kills import kills

RUN = """
import sys
from data_prep.options import ShardConfig
from data_prep.shard import shard
shard(ShardConfig.model_validate_json(sys.argv[1]), show_progress=False)
"""


@pytest.mark.slow
def test_prepare_work_seal_as_a_scheduler_does_it(csv_config: ShardConfig) -> None:
    """Plan once, work in separate processes, seal once."""
    work = prepare(csv_config)
    with pytest.raises(DataError, match=r"7 of 7 shards are not done, first train-000000.tar"):
        seal(work)
    command = [sys.executable, "-m", "data_prep.jobs.job", str(work), "1"]
    jobs = [subprocess.Popen(command) for _ in range(3)]
    assert [job.wait() for job in jobs] == [0, 0, 0]
    progress = RunProgress(work).read()
    assert (progress.done, progress.total, progress.failed) == (64, 64, 0)
    manifest = seal(work)
    assert sealed(work) == manifest
    other = csv_config.model_copy(update={"out": csv_config.out + "-other"})
    assert shard(other, show_progress=False) == manifest


@pytest.mark.slow
def test_a_job_waits_for_living_owners_and_inherits_from_dead_ones(csv_config: ShardConfig) -> None:
    work = prepare(csv_config)
    program = (
        "import os, sys; from pathlib import Path; from data_prep.jobs.claims import Claims\n"
        "claims = Claims(Path(sys.argv[1]))\n"
        "assert claims.take('train-000001.tar') and claims.take('val-000000.tar')\n"
        "print(flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(Workdir(work).claims)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert owner.stdout is not None
    owner.stdout.readline()
    heir = subprocess.Popen([sys.executable, "-m", "data_prep.jobs.job", str(work), "1"])
    out = Path(csv_config.out)
    while len(list(out.glob("*.record.json"))) < 5:
        time.sleep(0.05)
    time.sleep(1.0)
    assert heir.poll() is None
    assert len(list(out.glob("*.record.json"))) == 5
    owner.kill()
    owner.communicate()
    assert heir.wait(timeout=60) == 0
    assert seal(work).splits == {"train": 48, "val": 16}


def test_work_without_a_plan_is_bad_input(tmp_path: Path) -> None:
    for act in (run_shard_worker, seal):
        with pytest.raises(DataError, match="no plan"):
            act(tmp_path)


def test_a_report_cut_short_is_left_out_of_the_progress(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("")
    assert read_progress(tmp_path, total=3, already=1).done == 1


def test_overdue_files_are_remembered(
    csv_config: ShardConfig, costly: Path, tmp_path: Path
) -> None:
    """A restart does not spend the time again: the file is on the poison list."""
    work = prepare(csv_config)
    workdir = Workdir(work)
    plan = workdir.plans()[0]
    victim = workdir.shard(plan, 0).clips[3]
    assert csv_config.annotations is not None
    videos = tmp_path / "videos"
    shutil.copytree(csv_config.videos, videos)
    shutil.copy(costly, videos / victim.path)
    header = work / f"plan-{plan.split}.json"
    content = plan.model_copy(update={"videos": videos, "caps": Caps(timeout_s=0.4)})
    header.write_text(content.model_dump_json())
    run_shard_worker(work, decoders=1)
    poison = {victim.key: ("timeout", "over 0.4 s of processor time")}
    assert workdir.poison() == poison
    first = seal(work)
    assert first.splits == {"train": 47, "val": 16}
    (Path(csv_config.out) / "train-000000.record.json").unlink()
    shutil.copy(csv_config.videos / victim.path, videos / victim.path)  # would be made, if tried
    run_shard_worker(work, decoders=1)
    assert workdir.poison() == poison
    assert seal(work) == first


@pytest.mark.slow
def test_a_machine_without_space_quarantines_nothing(
    csv_config: ShardConfig, tmp_path: Path
) -> None:
    """A limit on file sizes stands in for a full disk: one line, status 1, nothing lost."""
    undisturbed = shard(csv_config, show_progress=False)
    assert csv_config.annotations is not None
    out = tmp_path / "full"
    program = (
        "import resource, sys; from pipeline.cli import main\n"
        "if sys.argv[1] == 'full': resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "del sys.argv[1]; main()"
    )
    options = f"data shard --format csv --videos {csv_config.videos} --out {out}".split()
    options += f"--annotations {csv_config.annotations} --clips-per-shard 10".split()
    command = [sys.executable, "-c", program]
    failed = subprocess.run([*command, "full", *options], capture_output=True, text=True)
    assert failed.returncode == 1
    assert "File too large" in failed.stderr.splitlines()[-1]
    assert not list(out.glob("*.record.json"))
    assert not (out / ".prep/poison.jsonl").exists()
    done = subprocess.run([*command, "enough", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    manifest = Manifest.model_validate_json((out / "manifest.json").read_text())
    assert manifest.splits == undisturbed.splits
    assert (out / "quarantine.jsonl").read_text() == ""


@pytest.mark.slow
def test_two_calls_at_once_on_one_output(csv_config: ShardConfig, tmp_path: Path) -> None:
    undisturbed = shard(csv_config, show_progress=False)
    changed = {"out": str(tmp_path / "shared"), "decoders": 1}
    config = csv_config.model_copy(update=changed)
    command = [sys.executable, "-c", RUN, config.model_dump_json()]
    calls = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [call.communicate()[1] for call in calls]
    assert [call.returncode for call in calls] == [0, 0, 0], said
    assert shard(config, show_progress=False) == undisturbed
    assert verify(config.out, workers=1, show_progress=False).findings == []


@pytest.mark.slow
def test_a_suspended_job_wakes_after_its_claim_was_taken(csv_config: ShardConfig) -> None:
    """Another node takes its shards over meanwhile; it goes on as one job among others."""
    work = prepare(csv_config)
    command = [sys.executable, "-m", "data_prep.jobs.job", str(work), "1"]
    job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    claims = Workdir(work).claims
    while not list(claims.glob("*.tar.*")):
        time.sleep(0.01)
    job.send_signal(signal.SIGSTOP)
    for path in claims.glob("*.tar.*"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "host": "far-away"}))
        os.utime(path, (0, 0))
    run_shard_worker(work, decoders=1)
    first = seal(work)
    job.send_signal(signal.SIGCONT)
    _, said = job.communicate(timeout=60)
    assert (job.returncode, said) == (0, "")
    assert seal(work) == first
    assert verify(csv_config.out, workers=1, show_progress=False).findings == []
    assert [name for name in os.listdir(csv_config.out) if name.endswith(".tmp")] == []


@pytest.mark.slow
def test_sigkills_then_the_same_manifest(csv_config: ShardConfig, tmp_path: Path) -> None:
    undisturbed = shard(csv_config, show_progress=False)
    updates = {"out": str(tmp_path / "killed"), "clips_per_shard": 10, "jobs": 2, "decoders": 1}
    config = csv_config.model_copy(update=updates)
    moments = random.Random(4)
    killed = 0
    while killed < kills(short=6):
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, config.model_dump_json()], start_new_session=True
        )
        # Between "still importing" and "has just sealed".
        time.sleep(moments.uniform(0.3, 2.0))
        os.killpg(process.pid, 9)
        killed += process.wait() == -9
        if (Path(config.out) / "manifest.json").exists():
            shutil.rmtree(config.out)  # it got to the end: start over
    assert shard(config, show_progress=False) == undisturbed
    assert verify(config.out, workers=1, show_progress=False).findings == []
    assert [name for name in os.listdir(config.out) if name.endswith(".tmp")] == []


@pytest.mark.slow
def test_output_to_a_url(csv_config: ShardConfig, tmp_path: Path) -> None:
    local = shard(csv_config, show_progress=False)
    urls = (f"file://{tmp_path}/by_url", "memory://shards/glyphs")
    for number, url in enumerate(urls):
        work = tmp_path / f"work-{number}"
        config = csv_config.model_copy(update={"out": url, "work": work})
        assert shard(config, show_progress=False) == local
        assert shard(config, show_progress=False) == local
        outcome = verify(url, work=work, workers=1, show_progress=False)
        assert outcome.findings == []
        with fsspec.open(f"{url}/manifest.json", "rb") as file:
            assert Manifest.model_validate_json(file.read()) == local
        with fsspec.open(f"{url}/{local.shards[0].name}", "rb") as file:
            content = file.read()
        assert content == (Path(csv_config.out) / local.shards[0].name).read_bytes()
        assert list((work / "scratch").iterdir()) == []
    memory = fsspec.filesystem("memory")
    memory.pipe_file(f"/shards/glyphs/{local.shards[1].name}", b"damaged")
    fixed = verify(urls[1], fix=True, work=tmp_path / "work-1", workers=1, show_progress=False)
    assert (fixed.findings, fixed.rebuilt) == ([], [local.shards[1].name])


def test_a_moved_directory_is_repaired_where_it_is(csv_config: ShardConfig, tmp_path: Path) -> None:
    manifest = shard(csv_config, show_progress=False)
    moved = tmp_path / "moved"
    Path(csv_config.out).rename(moved)
    (moved / manifest.shards[0].name).unlink()
    outcome = verify(str(moved), fix=True, workers=1, show_progress=False)
    assert (outcome.findings, outcome.digest) == ([], manifest.digest)
    assert not Path(csv_config.out).exists()


def test_copy_keeps_suitable_files_byte_for_byte(
    csv_config: ShardConfig, real_videos: Path, tmp_path: Path
) -> None:
    """Synthetic clips are in the normal form already; a download is not."""
    videos = tmp_path / "videos"
    shutil.copytree(csv_config.videos, videos)
    shutil.copy(real_videos / "structuralize.mp4", videos / "download.mp4")
    table = videos / "annotations.csv"
    table.write_text(table.read_text() + "download.mp4,left,train\n")
    updates = {"videos": videos, "annotations": table}
    config = csv_config.model_copy(update=updates).model_copy(
        update={"encode": csv_config.encode.model_copy(update={"copy_suitable": True})}
    )
    shard(config, show_progress=False)
    out = Path(config.out)
    for row in pq.read_table(out / "index.parquet").to_pylist():
        with (out / row["shard"]).open("rb") as tar:
            tar.seek(row["offset"])
            stored = tar.read(row["size"])
        kept = stored == (videos / row["source"]).read_bytes()
        assert kept == (row["source"] != "download.mp4")
        assert row["keyframes"] == list(range(0, row["frames"], 16))
    rows = [json.loads(p.read_text())["rows"] for p in out.glob("*.record.json")]
    assert {row["source"]: row["copied"] for part in rows for row in part}["download.mp4"] is False
    assert verify(config.out, workers=1, show_progress=False).findings == []
