"""`vmp reproduce` and `vmp recipes`: what they print, what they refuse, and a chain that runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model import create_model
from pipeline import exits
from pipeline.commands.recipes import list_recipes, markdown_tables
from pipeline.commands.reproduce import list_rows, show_row, submit_row
from pipeline.commands.submit import Order
from pipeline.config import load_config, read_config, shipped_recipes
from pipeline.data.errors import DataError
from pipeline.errors import ConfigError
from pipeline.reproduce.rows import load_tables
from slurm.errors import ClusterError
from tests.conftest import ROOT
from tests.pipeline.data.conftest import write_shards

ROW = "in1k/videomambapro-ti/448"
SMALL = [
    *("model.embed_dim=32", "model.depth=2", "model.d_state=4", "model.num_classes=3"),
    *("model.img_size=32", "batch.global_size=4", "batch.max_micro=4", "schedule.max_steps=2"),
    *("data.workers=0", "eval.every_epochs=1000", "tracking.enabled=false", "log_every_steps=1"),
    "launch.ranks_per_node=1",
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reproduce") / "in1k"
    return write_shards(out, {"train": [1] * 8, "val": [1] * 2})


def test_the_tables_in_the_document_are_those_of_the_recipes() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    table = text.partition("<!-- recipes -->\n\n")[2].partition("\n\n<!-- end of recipes -->")[0]
    assert table == markdown_tables(), "run `vmp recipes --markdown` and paste the result"


def test_every_recipe_and_every_row_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    list_recipes()
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed[1:]] == shipped_recipes()
    (own,) = [line for line in listed if line.startswith("finetune ")]
    assert own.split()[1:8] == ["8", "x", "224", "auto", "3e-4", "auto", "(auto)"]
    list_rows()
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed[1:]] == list(load_tables().rows)


def show(row: str, *overrides: str, **options: object) -> None:
    given = {"shards": (), "runs_dir": Path("runs"), "init": (), "gpus_per_node": 8}
    show_row(row, overrides, **(given | {"clips_s": None} | options))  # type: ignore[arg-type]


def test_a_row_shows_its_shards_beside_the_published_lists(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shards / "quarantine.jsonl").write_text('{"reason": "decode"}\n')
    show(ROW, shards=[str(shards)], runs_dir=tmp_path, clips_s=100.0)
    out = capsys.readouterr().out
    assert "train: 8 of 1,281,167 videos, 1,281,159 missing" in out
    assert "val: 2 of 50,000 videos, 49,998 missing" in out
    assert "classes: 3, where the data set has 1000" in out
    assert "left out by sharding: 1 inputs" in out
    assert "1 clips x 1 crops of 1 frames at 448 px" in out
    assert f"init_from: the run of in1k_t16_224, {tmp_path / 'in1k_t16_224'}" in out
    assert "or videomambapro_t16_in1k_res224.pth: " in out
    assert "in1k_t16_448: no step, since 8 training clips do not fill a batch" in out
    assert "no finished run with its settings" in out
    (shards / "quarantine.jsonl").unlink()


def test_the_cost_scales_with_the_given_speed(capsys: pytest.CaptureFixture[str]) -> None:
    """1,281,167 pictures, 30 epochs: 38.4 million clips, at 100 clips/s on 8 GPUs 13.3 hours."""
    show(ROW, clips_s=100.0)
    out = capsys.readouterr().out
    assert "in1k_t16_448: 13.3 node-hours (stated)" in out
    assert "stated = 100 clips/s per GPU (--clips-s, in1k_t16_448)" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": ["none.pth"]}, "--init none.pth: there is no file and no run none.pth"),
        ({"init": ["x_16=README.md"]}, "x_16: no stage of this row starts from it: "),
        ({"shards": ["in1k="]}, "--shards in1k=: must be DIR or NAME=DIR"),
    ],
)
def test_bad_options_are_one_line(
    options: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError) as error:
        show(ROW, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_row_without_a_start_takes_no_weights(tmp_path: Path) -> None:
    (tmp_path / "w.pth").touch()
    with pytest.raises(ConfigError, match="in1k_t16_224 starts from fresh weights"):
        show("in1k/videomambapro-ti/224", init=[str(tmp_path / "w.pth")])


def submit(order: Order, runs_dir: Path, *overrides: str, row: str = ROW, **options: object) -> int:
    given = {"shards": (), "init": ()} | options
    return submit_row(row, overrides, order, runs_dir=runs_dir, **given)  # type: ignore[arg-type]


def test_a_dry_run_prints_the_chain_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    row = "ucf101/videomambapro-m/f16"
    options = {"shards": ["k400=/data/k400"], "row": row}
    assert submit(Order(dry_run=True), runs, "seed=3", **options) == exits.DONE
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all("seed=3" in line and f"runs_dir={runs}" in line for line in lines)
    assert f"task.teacher.path={runs / 'in1k_s16_224'}" in lines[1]
    assert "submit k400_m16_f16 " in lines[2]
    assert f"init_from={runs / 'in1k_m16_224'}" in lines[2]
    assert "data.train=/data/k400" in lines[2]
    assert lines[2].endswith("(after stage 2)")
    assert all(line.endswith("(after stage 3)") for line in lines[3:])
    assert not runs.exists()


def test_nothing_is_submitted_before_every_stage_can_start(shards: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    own = [*SMALL, "model.num_frames=1"]
    with pytest.raises(DataError, match=r"shards/k400: no manifest\.json here"):
        submit(Order(), runs, *own, row="k400/videomamba-ti/f8", shards=[f"in1k={shards}"])
    with pytest.raises(ClusterError, match="cannot be read"):
        submit(Order(profile=tmp_path / "none.yaml"), runs, *own, shards=[str(shards)])
    assert not runs.exists()


@pytest.mark.slow
def test_a_stage_runs_here_from_given_weights_and_is_passed_over_once_finished(
    shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runs, weights = tmp_path / "runs", tmp_path / "in1k.pth"
    small = load_config("in1k_t16_224", SMALL).model
    torch.save({"model": create_model(small).state_dict()}, weights)
    options = {"shards": [str(shards)], "init": [str(weights)]}
    assert submit(Order(), runs, *SMALL, **options) == exits.DONE
    (run,) = (path.parent for path in runs.glob("*/summary.json"))
    assert run.name == "in1k_t16_448"
    assert read_config(run).init_from == weights
    capfd.readouterr()

    assert submit(Order(), runs, *SMALL, **options) == exits.DONE
    assert f"run {run} is finished" in capfd.readouterr().out
    show(ROW, *SMALL, runs_dir=runs, **options)
    out = capfd.readouterr().out
    assert f"{run}: " in out.partition("\nours\n")[2]
    assert "measured, step times of" in out
