"""`vmp audit` proves real runs, and finds each way in which a record can deviate."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import rundir
from pipeline.audit.audit import audit
from pipeline.audit.result import Audit, Verdict
from pipeline.checkpoint import layout
from pipeline.cli import app
from pipeline.config import read_config
from pipeline.errors import ConfigError
from pipeline.rundir.paths import STARTS_FILE, samples_file
from tests.dist.conftest import STEPS

pytestmark = pytest.mark.dist


@pytest.fixture
def run_dir(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of the undisturbed run to damage: 40 steps of 12 samples on two ranks."""
    return Path(shutil.copytree(undisturbed, tmp_path / undisturbed.name))


def faults(found: Audit) -> list[str]:
    return [text for check in found.checks for text in check.faults]


def edit(path: Path, change: Callable[[list[str]], object]) -> None:
    lines = path.read_text().splitlines(keepends=True)
    change(lines)
    path.write_text("".join(lines))


def reseal(checkpoint: Path, name: str, content: bytes) -> None:
    """Change a file of a checkpoint together with its hash in the marker."""
    (checkpoint / name).write_bytes(content)
    marker = json.loads((checkpoint / layout.MARKER).read_text())
    marker["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / layout.MARKER).write_text(json.dumps(marker))


def test_an_undisturbed_run_is_proven(undisturbed: Path, glyph_shards: Path) -> None:
    found = audit(undisturbed)
    assert faults(found) == []
    assert (found.verdict, found.verdict.exit_status) == (Verdict.PROVEN, 0)
    assert (found.steps, found.global_batch, found.epochs) == (STEPS, 12, 5.0)
    (stretch,) = found.stretches
    assert (stretch.steps, stretch.world_size, stretch.discarded) == (range(STEPS), 2, {})
    details = {check.name: check.detail for check in found.checks}
    assert details["sample log"] == "480 samples, each in its place of its rank"
    assert "sha256 of 4 shards" in details["data"]
    assert "not read" in {c.name: c.detail for c in audit(undisturbed, quick=True).checks}["data"]


def test_a_changed_sample_is_named(run_dir: Path) -> None:
    log = samples_file(run_dir, 1)
    lines = log.read_text().splitlines()
    where = next(i for i, line in enumerate(lines) if line.startswith("17\t"))
    right, wrong = lines[where].split("\t")[1], lines[where + 40].split("\t")[1]
    edit(log, lambda rows: rows.__setitem__(where, f"17\t{wrong}\n"))
    found = audit(run_dir)
    assert found.verdict is Verdict.DISPROVEN
    assert found.reason == (
        f"step 17, rank 1: sample {right} is missing; sample {wrong} does not belong there"
    )
    assert len(faults(found)) == 1


def test_a_removed_row_is_named(run_dir: Path) -> None:
    log = samples_file(run_dir, 0)
    lines = log.read_text().splitlines()
    where = next(i for i, line in enumerate(lines) if line.startswith("31\t"))
    edit(log, lambda rows: rows.pop(where))
    key = lines[where].split("\t")[1]
    assert faults(audit(run_dir)) == [f"step 31, rank 0: sample {key} is missing"]


def test_rows_in_another_order_twice_or_of_another_rank_are_found(run_dir: Path) -> None:
    log, other = samples_file(run_dir, 0), samples_file(run_dir, 1)

    def swap(rows: list[str]) -> None:
        rows[0], rows[1] = rows[1], rows[0]

    edit(log, swap)
    edit(other, lambda rows: rows.append(rows[0]))
    samples_file(run_dir, 2).write_text(other.read_text().splitlines(keepends=True)[6])
    key = other.read_text().splitlines()[6].split("\t")[1]
    assert faults(audit(run_dir)) == [
        "step 0, rank 0: its samples are in another order",
        f"step 1, rank 2: sample {key} does not belong there",
        "step 0, rank 1: its lines are out of place",
    ]


def test_a_log_that_is_gone_is_a_fault_where_a_start_recorded_it(run_dir: Path) -> None:
    samples_file(run_dir, 1).unlink()
    found = audit(run_dir)
    assert found.verdict is Verdict.DISPROVEN
    assert re.fullmatch(r"step 0, rank 1: sample \w+ is missing, and 5 more", faults(found)[0])


def test_a_counter_that_lies_is_found_even_under_a_matching_marker(run_dir: Path) -> None:
    checkpoint = run_dir / "checkpoints" / layout.checkpoint_name(20)
    state = json.loads((checkpoint / layout.STATE_FILE).read_text())
    lie = json.dumps(state | {"position": 252}).encode()
    (checkpoint / layout.STATE_FILE).write_bytes(lie)
    assert "state.json" in faults(audit(run_dir))[0]
    reseal(checkpoint, layout.STATE_FILE, lie)
    assert faults(audit(run_dir)) == [
        f"checkpoint {checkpoint}: its position is 252, but 20 steps of 12 samples end at 240"
    ]
    lie = json.dumps(state | {"world_size": 3, "skipped_steps": 1, "step": 19, "position": 228})
    reseal(checkpoint, layout.STATE_FILE, lie.encode())
    assert faults(audit(run_dir)) == [
        f"checkpoint {checkpoint}: its state says step 19",
        f"checkpoint {checkpoint}: 20 updates of the weights and 1 skipped steps do not make 19 "
        "steps",
        f"checkpoint {checkpoint}: 3 ranks committed it, but 2 ranks trained step 18",
    ]


def test_another_seed_or_start_than_the_one_trained_with_is_found(run_dir: Path) -> None:
    edit(run_dir / STARTS_FILE, lambda rows: rows.append(rows[0].replace('"step":0', '"step":48')))
    config = run_dir / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 1"))
    newest = run_dir / "checkpoints" / layout.checkpoint_name(STEPS)
    assert faults(audit(run_dir)) == [
        f"an attempt began at step 48, but the newest checkpoint is of step {STEPS}",
        f"{run_dir}: another configuration than {newest}: seed: 0 -> 1",
    ]


def test_an_attempt_begins_no_later_than_the_one_before_committed(run_dir: Path) -> None:
    first = rundir.read_starts(run_dir)[0]
    (run_dir / STARTS_FILE).unlink()
    rundir.append_start(run_dir, first.model_copy(update={"attempt": "7.0"}))
    rundir.append_start(run_dir, first.model_copy(update={"attempt": "7.1", "step": 20}))
    rundir.append_attempt(run_dir, rundir.Attempt(job_id="7", stop_class="preempted", step=20))
    assert audit(run_dir).verdict is Verdict.PROVEN
    rundir.append_attempt(run_dir, rundir.Attempt(job_id="7", stop_class="preempted", step=10))
    assert faults(audit(run_dir)) == [
        "an attempt began at step 20, but attempt 7.0 before it had ended with step 10 as its "
        "newest checkpoint"
    ]


def test_steps_that_no_checkpoint_keeps_are_counted(run_dir: Path) -> None:
    for checkpoint in layout.committed(run_dir / "checkpoints"):
        if layout.step_of(checkpoint) > 20:
            shutil.rmtree(checkpoint)
    found = audit(run_dir)
    assert (found.verdict, found.steps) == (Verdict.PROVEN, 20)
    assert found.uncommitted == dict.fromkeys(range(20, STEPS), 12)


def test_altered_shards_are_found_and_other_shards_are_not_judged(
    run_dir: Path, glyph_shards: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(glyph_shards, tmp_path / "moved"))
    places = [f"data.train={moved}"]
    assert audit(run_dir, places).verdict is Verdict.PROVEN
    tar = moved / "train-000001.tar"
    content = bytearray(tar.read_bytes())
    content[2000] ^= 1
    tar.write_bytes(content)
    assert faults(audit(run_dir, places)) == [f"{tar}: its sha256 is not the one that was sealed"]
    assert audit(run_dir, places, quick=True).verdict is Verdict.PROVEN
    tar.unlink()
    found = audit(run_dir, places)
    assert (found.verdict, found.verdict.exit_status) == (Verdict.NOT_JUDGED, 2)
    assert str(tar) in [text for check in found.checks for text in check.doubts][-1]


def test_a_run_without_a_sample_log_or_with_half_of_one_is_not_judged(run_dir: Path) -> None:
    """The beginning was trained by a version that recorded no starts, or without a log."""
    starts = run_dir / STARTS_FILE
    (start,) = starts.read_text().splitlines()
    starts.write_text(start.replace('"step":0', '"step":10') + "\n")
    found = audit(run_dir)
    assert found.verdict is Verdict.PROVEN
    assert [(s.steps, s.world_size) for s in found.stretches] == [
        (range(10), None),
        (range(10, STEPS), 2),
    ]
    assert "120 samples by global batch" in found.checks[0].detail

    for rank in range(2):
        edit(samples_file(run_dir, rank), lambda rows: rows.__delitem__(slice(60)))
    assert audit(run_dir).reason.startswith("10 steps from 0 on are in no sample log")
    silent = start.replace('"logs_samples":true', '"logs_samples":false')
    starts.write_text(silent + "\n" + starts.read_text())
    found = audit(run_dir)
    assert found.verdict is Verdict.NOT_JUDGED
    assert found.reason == "steps 0 to 9 trained with log_samples=false"
    for rank in range(2):
        samples_file(run_dir, rank).unlink()
    found = audit(run_dir)
    assert (found.verdict, found.checks[0].doubts[0].split(": ")[1]) == (
        Verdict.NOT_JUDGED,
        "no sample log; train with log_samples=true",
    )


def test_bad_input_is_one_line(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"only data\.train=DIR and data\.val=DIR"):
        audit(run_dir, ["seed=3"])
    with pytest.raises(ConfigError, match="is this a run"):
        audit(tmp_path / "nothing")
    shutil.rmtree(run_dir / "checkpoints")
    with pytest.raises(ConfigError, match="no checkpoint, so no step of it is committed"):
        audit(run_dir)


def test_the_command_reports_on_the_terminal_as_json_and_as_a_page(
    run_dir: Path, tmp_path: Path
) -> None:
    page = tmp_path / "audit.html"
    ran = CliRunner().invoke(app, ["audit", str(run_dir), "--html", str(page)])
    assert ran.exit_code == 0, ran.output
    assert "proven: each of 40 committed steps saw exactly the 12 samples" in ran.output
    assert "0 to 39" in ran.output
    assert "<b>Proven.</b>" in page.read_text()
    edit(samples_file(run_dir, 0), lambda rows: rows.__setitem__(0, "0\t<script>\n"))
    ran = CliRunner().invoke(app, ["audit", str(run_dir), "--json", "--html", str(page)])
    assert ran.exit_code == 1
    report = json.loads(ran.output)
    assert (report["verdict"], report["steps"]) == ("disproven", STEPS)
    assert report["reason"].endswith("sample <script> does not belong there")
    assert "<script>" not in page.read_text()
    assert read_config(run_dir).data.train is not None
    nowhere = CliRunner().invoke(app, ["audit", str(run_dir), "--html", str(tmp_path / "no/p")])
    assert isinstance(nowhere.exception, ConfigError)
