"""A damaged file in a run directory does not keep a reader from the rest of it."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import rundir
from pipeline.checkpoint.layout import RunState
from pipeline.rundir import Attempt, End, Failure, State, StopClass, records
from pipeline.rundir.metrics import MetricsLog, read_metrics
from pipeline.rundir.paths import failure_file, heartbeat_file, is_unfinished, mark_file
from pipeline.rundir.records import Record
from tests.conftest import require


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / rundir.LOGS).mkdir()
    return tmp_path


def commit(run_dir: Path, name: str) -> Path:
    checkpoint = run_dir / rundir.CHECKPOINTS / name
    checkpoint.mkdir(parents=True)
    (checkpoint / "COMMITTED").touch()
    return checkpoint


def test_only_our_own_directories_are_checkpoints(run_dir: Path) -> None:
    ours = commit(run_dir, "step-00000040")
    for name in ("step-00000050.bak", "step-50", "step-000000500", "mine.tmp"):
        commit(run_dir, name)
    linked = run_dir / rundir.CHECKPOINTS / "step-00000060"
    linked.symlink_to(commit(run_dir, "elsewhere"))
    (run_dir / rundir.CHECKPOINTS / "step-00000070").symlink_to("nowhere")
    (run_dir / rundir.CHECKPOINTS / "step-00000080.tmp").symlink_to(ours)
    (run_dir / rundir.CHECKPOINTS / "step-00000090").touch()

    assert rundir.committed(run_dir / rundir.CHECKPOINTS) == [ours]
    assert rundir.newest_step(run_dir) == 40
    found = (run_dir / rundir.CHECKPOINTS).iterdir()
    assert [path for path in found if is_unfinished(path)] == []
    (ours / "COMMITTED").unlink()
    assert is_unfinished(ours)
    assert rundir.newest_step(run_dir) == -1


BROKEN = [b"", b"{}", b"[]", b"null", b"\0\0\0", b"\xff\xfe", b'{"rank": 1, "no', b'{"rank": "x"}']


@pytest.mark.parametrize("content", BROKEN)
def test_a_record_that_is_none_counts_as_absent(run_dir: Path, content: bytes) -> None:
    sound = Failure.of(0, ValueError("the cause"), StopClass.CRASH)
    sound.write(run_dir)
    for path in (failure_file, mark_file, heartbeat_file):
        path(run_dir, 1).write_bytes(content)
        path(run_dir, 2).symlink_to("nowhere")
        path(run_dir, 3).mkdir()
    (run_dir / rundir.STATUS_FILE).write_bytes(content)

    assert rundir.first_failure(run_dir) == sound
    assert rundir.read_marks(run_dir, "") == []
    assert rundir.read_heartbeats(run_dir) == []
    assert rundir.read_status(run_dir).state is State.UNREADABLE
    rundir.forget_failures(run_dir)
    assert rundir.first_failure(run_dir) is None


def test_a_key_of_a_newer_version_is_ignored(run_dir: Path) -> None:
    Failure.of(0, ValueError("x"), StopClass.HANG).write(run_dir)
    rundir.write_status(run_dir, State.FAILED, End(StopClass.HANG, "x"), exit_status=1)
    for path in (failure_file(run_dir, 0), run_dir / rundir.STATUS_FILE):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"of": {"tomorrow": 1}}))
    failure = rundir.first_failure(run_dir)
    assert failure is not None
    assert failure.stop_class is StopClass.HANG
    assert rundir.read_status(run_dir).exit_status == 1


def test_a_class_of_a_newer_version_does_not_hide_the_state(run_dir: Path) -> None:
    (run_dir / rundir.STATUS_FILE).write_text('{"state": "failed", "stop_class": "meteorite"}')
    status = rundir.read_status(run_dir)
    assert (status.state, status.stop_class) == (State.FAILED, None)


def test_attempts_keep_their_lines_whatever_is_in_a_reason(run_dir: Path) -> None:
    told = [Attempt(job_id="7", stop_class="crash", reason=text) for text in ("a\u2028b", "c\x85")]
    for attempt in told:
        rundir.append_attempt(run_dir, attempt)
        with (run_dir / rundir.ATTEMPTS_FILE).open("ab") as file:
            file.write(b"\xff\n\0\0\n{}\n")
    assert rundir.read_attempts(run_dir) == told


def test_rows_that_are_none_are_left_out_and_counted(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = MetricsLog(run_dir, resume_step=0)
    log.write(1, "train", {"loss": 1.5})
    log.write(2, "train", {"loss": math.nan, "lr": math.inf})
    log.close()
    bad = [
        b"\0\0\0",
        b"\xff\xfe",
        b'{"loss": 1}',
        b'{"step": "x", "kind": "train", "time": 1}',
        b"[]",
        b'{"step": 1, "kind": "train", "time": 1, "loss": "low"}',
    ]
    with (run_dir / rundir.METRICS_FILE).open("ab") as file:
        file.write(b"\n".join(bad) + b"\n\n")
        file.write('{"step": 3, "kind": "train", "time": 1, "a\u2028b": 2}\n'.encode())
        file.write(b'{"step": 4, "ki')
    with caplog.at_level(logging.WARNING):
        rows = read_metrics(run_dir)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert math.isnan(rows[1]["loss"])
    assert rows[1]["lr"] == math.inf
    assert "6 lines are no rows" in caplog.text
    MetricsLog(run_dir, resume_step=2).close()
    assert [row["step"] for row in read_metrics(run_dir)] == [1, 2]


def test_numbers_that_are_not_finite_come_back(tmp_path: Path) -> None:
    class Told(Record):
        value: records.Number

    path = tmp_path / "told.json"
    for value in (math.inf, -math.inf, 0.1):
        records.write(path, Told(value=value))
        assert records.read(path, Told) == Told(value=value)
    records.write(path, Told(value=math.nan))
    for text in (path.read_text(), '{"value": null}'):  # null: as it was written before
        path.write_text(text)
        told = records.read(path, Told)
        assert told is not None
        assert math.isnan(told.value)


def test_a_checkpoint_of_a_run_that_diverged_can_be_read() -> None:
    state = RunState(
        step=1, position=1, adam_steps=1, world_size=1, zero_stage=1, shapes={}, classes=("a",),
        data_digest="", metrics={"loss": math.nan}, best_top1=math.nan,
    )  # fmt: skip
    for text in (state.model_dump_json(), state.model_dump_json().replace("NaN", "null")):
        read = RunState.model_validate_json(text)
        assert math.isnan(read.metrics["loss"])
        assert math.isnan(read.best_top1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A run directory on a file system of its own, of 64 KiB."""
    require(os.getuid() == 0, "root, to mount a small file system")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_disk_leaves_no_run_running(small_disk: Path) -> None:
    rundir.write_status(small_disk, State.RUNNING)
    with pytest.raises(OSError, match="No space left"):
        fill(small_disk / "filler")
    end = End(StopClass.DISK_FULL, "no space left")

    rundir.write_status(small_disk, State.FAILED, end, exit_status=1)

    status = rundir.read_status(small_disk)
    assert (status.state, status.stop_class) == (State.FAILED, StopClass.DISK_FULL)
    assert status.reason == "no space left"
    assert sorted(path.name for path in small_disk.iterdir()) == ["filler", "status.json"]


def test_who_asks_for_the_lock_does_not_take_it(run_dir: Path) -> None:
    assert not rundir.is_active(run_dir)
    hold = "import sys; from pathlib import Path; from pipeline import rundir\n"
    hold += f"with rundir.exclusive(Path({str(run_dir)!r})): print('held', flush=True); input()"
    command = [sys.executable, "-c", hold]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert rundir.is_active(run_dir)
        with pytest.raises(rundir.RunInUseError, match="in use"), rundir.exclusive(run_dir):
            pass
        holder.kill()
    assert not rundir.is_active(run_dir)
    with rundir.exclusive(run_dir):
        assert rundir.is_active(run_dir)


def test_the_run_directory_is_read_without_torch() -> None:
    code = (
        "import sys, pipeline.config, pipeline.rundir, pipeline.data; print('torch' in sys.modules)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert told == "False\n"
