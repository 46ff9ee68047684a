"""A real run whose records were damaged, several at once: it is listed, judged and gone on with."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import prepare, rundir
from pipeline.checkpoint.load import newest_valid
from pipeline.commands import watch
from pipeline.commands.finished import finished
from pipeline.config import RunConfig, read_config
from pipeline.data.errors import DataError
from pipeline.errors import CheckpointError, ConfigError
from pipeline.rundir import State, StopClass
from pipeline.rundir.metrics import MetricsLog, read_metrics
from pipeline.rundir.paths import samples_file
from pipeline.rundir.samples import drop_samples_from, read_samples
from pipeline.rundir.summary import Summary, read_summary, write_summary
from slurm.errors import ClusterError
from slurm.judge import gather, judge
from slurm.nodes import faults
from slurm.policy import decide
from slurm.record import find_record, read_record
from tests.fuzz import value_or_own_error
from tests.kills import kills

BEFORE = Path(__file__).parents[2] / "before"
SAVED = 205
ATTEMPT = "1.1"
OWN = (ConfigError, ClusterError, CheckpointError, DataError)


def cut(content: bytes, chance: random.Random) -> bytes:
    """A kill or a full disk in the middle of writing."""
    return content[: chance.randrange(len(content) + 1)]


def zeroed(content: bytes, chance: random.Random) -> bytes:
    """A power cut: the length has reached the disk, the blocks have not."""
    start = chance.randrange(len(content) + 1)
    return content[:start].ljust(len(content), b"\0")


def flipped(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def doubled(content: bytes, chance: random.Random) -> bytes:
    """A stretch is there twice, as when two processes append."""
    start, end = sorted(chance.randrange(len(content) + 1) for _ in range(2))
    return content[:end] + content[start:]


def lacking(content: bytes, chance: random.Random) -> bytes:
    start, end = sorted(chance.randrange(len(content) + 1) for _ in range(2))
    return content[:start] + content[end:]


KINDS: list[Callable[[bytes, random.Random], bytes]] = [cut, zeroed, flipped, doubled, lacking]


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run of tests/before, stopped at step 205, with a sample log and a summary added."""
    monkeypatch.setattr(watch.queue, "views", lambda _: {})  # SLURM has forgotten the job
    shutil.copytree(BEFORE / "runs", tmp_path / "runs")
    run_dir = tmp_path / "runs" / "before"
    for rank in range(2):
        lines = (f"{step}\tkey{rank}{step:04d}\n" for step in range(SAVED + 5))
        samples_file(run_dir, rank).write_text("".join(lines))
    checkpoint = run_dir / rundir.CHECKPOINTS / f"step-{SAVED:08d}"
    write_summary(run_dir, Summary(top1=0.5, num_samples=8, steps=SAVED, checkpoint=checkpoint))
    return run_dir


def records_of(run_dir: Path) -> list[Path]:
    """Every file of the run outside its checkpoints."""
    checkpoints = run_dir / rundir.CHECKPOINTS
    found = [path for path in run_dir.rglob("*") if checkpoints not in path.parents]
    return sorted(path for path in [*found, run_dir.parent / "bad_nodes.jsonl"] if path.is_file())


def digests(directory: Path) -> dict[Path, str]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_everything(run_dir: Path, srun_status: int) -> None:
    """What `vmp jobs`, the supervisor and a start read."""
    (row,) = watch.list_jobs(run_dir.parent)
    assert (row.name, row.checkpoint) in (
        ("before", f"step-{SAVED:08d}"),
        ("before", None),  # nobody knows the job: job.json is damaged
    )
    list(watch.bad_nodes(run_dir.parent))
    faults(run_dir.parent)
    value_or_own_error(lambda: watch.print_log(run_dir, lambda _: None, follow=False), *OWN)
    value_or_own_error(lambda: find_record(run_dir), *OWN)
    record = read_record(run_dir)
    end = judge(gather(run_dir, ATTEMPT, srun_status, {"JobState": "RUNNING"}, record))
    assert end.stop_class is not StopClass.FINISHED, "half a status must not end a run"
    decide(end, rundir.read_attempts(run_dir), rundir.newest_step(run_dir), 1, record.retry)
    read_summary(run_dir)
    read_samples(run_dir)
    rundir.read_heartbeats(run_dir)


def start_again(run_dir: Path, config: RunConfig) -> None:
    """What a start does before its first step, up to the cut of the logs at the checkpoint."""
    value_or_own_error(lambda: prepare.check_start(config, 2), *OWN)
    value_or_own_error(lambda: finished(config), *OWN)
    value_or_own_error(lambda: prepare.prepare_run(config), *OWN)
    newest = newest_valid(run_dir / rundir.CHECKPOINTS)
    assert newest is not None
    assert newest.name == f"step-{SAVED:08d}"
    drop_samples_from(run_dir, SAVED)
    MetricsLog(run_dir, SAVED).close()
    assert max(read_samples(run_dir), default=0) < SAVED
    assert all(row["step"] <= SAVED for row in read_metrics(run_dir))
    rundir.append_attempt(run_dir, rundir.Attempt(job_id="9", stop_class="hang"))
    assert rundir.read_attempts(run_dir)[-1].job_id == "9"
    rundir.write_status(run_dir, State.RUNNING)
    assert rundir.read_status(run_dir).state is State.RUNNING


def test_damaged_records_stop_nobody_and_cost_no_checkpoint(run_dir: Path) -> None:
    chance = random.Random(14)
    whole = {path: path.read_bytes() for path in records_of(run_dir)}
    assert len(whole) >= 15
    checkpoints = digests(run_dir / rundir.CHECKPOINTS)
    stored = read_config(run_dir)
    config = stored.model_copy(
        update={
            "runs_dir": run_dir.parent,
            "data": stored.data.model_copy(update={"train": str(BEFORE / "shards")}),
        }
    )
    read_everything(run_dir, 0)
    for number in range(50 * kills(short=4)):
        damage = []
        for path in chance.sample(sorted(whole), k=chance.randint(1, 4)):
            kind = chance.choice(KINDS)
            path.write_bytes(kind(whole[path], chance))
            damage.append(f"{path.name} {kind.__name__}")
        try:
            read_everything(run_dir, chance.choice([0, 1, 75, 137]))
            start_again(run_dir, config)
        except BaseException as error:
            error.add_note(f"damage {number}: {', '.join(damage)}")
            raise
        assert digests(run_dir / rundir.CHECKPOINTS) == checkpoints, damage
        for path in {*records_of(run_dir)} - whole.keys():
            path.unlink()
        for path, content in whole.items():
            path.write_bytes(content)


def test_a_log_cut_anywhere_keeps_its_whole_lines(run_dir: Path) -> None:
    chance = random.Random(15)
    metrics, samples = run_dir / rundir.METRICS_FILE, samples_file(run_dir, 0)
    samples_file(run_dir, 1).unlink()
    attempts = run_dir / rundir.ATTEMPTS_FILE
    content = {path: path.read_bytes() for path in (metrics, samples, attempts)}
    rows = [json.loads(line) for line in content[metrics].splitlines()]
    seen, ended = read_samples(run_dir), rundir.read_attempts(run_dir)
    for _ in range(50 * kills(short=4)):
        lines = {}
        for path, was in content.items():
            left = cut(was, chance)
            path.write_bytes(left)
            lines[path] = left.count(b"\n")
        # A last line without its end may be whole.
        assert read_metrics(run_dir) in (rows[: lines[metrics]], rows[: lines[metrics] + 1])
        known = rundir.read_attempts(run_dir)
        assert known in (ended[: lines[attempts]], ended[: lines[attempts] + 1])
        assert read_samples(run_dir) == dict(list(seen.items())[: lines[samples]])


@pytest.mark.parametrize("job_id", ["", "x", "9" * 30])
def test_a_job_without_a_log_or_a_process_is_over(run_dir: Path, job_id: str) -> None:
    record = {"cluster": "local", "job_id": job_id, "started": 1.0}
    (run_dir / rundir.JOB_FILE).write_text(json.dumps(record))
    with pytest.raises(ClusterError, match=r"job\.json: names no log"):
        watch.print_log(run_dir, lambda _: None, follow=False)
    (row,) = watch.list_jobs(run_dir.parent)
    assert row.state == "stopped"
