"""Errors that `vmp submit` reports before it contacts a cluster."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
import torch

from pipeline.commands.submit import Order, _configs, _say_ours, check_runs, submit_run
from pipeline.errors import CheckpointError
from slurm import launch
from slurm.errors import ClusterError


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("seed=0,0", "seed=0 and seed=0 would both be run demo-seed_0"),
        ("data.train=a/b,ab", "data.train=a/b and data.train=ab would both be run demo-train_ab"),
    ],
)
def test_two_runs_of_a_sweep_never_share_a_directory(sweep: str, message: str) -> None:
    with pytest.raises(ClusterError) as error:
        submit_run("demo", [], Order(sweep=[sweep]))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_name_of_a_recipe_is_not_read_as_yaml_again(tmp_path: Path) -> None:
    recipe = resources.files("pipeline") / "recipes" / "demo.yaml"
    text = recipe.read_text().replace("name: demo", "name: 'a #b'")
    (tmp_path / "r.yaml").write_text(text)
    (one,) = _configs(str(tmp_path / "r.yaml"), [], [])
    assert one.name == "a #b"
    both = _configs(str(tmp_path / "r.yaml"), [], ["seed=0,1"])
    assert [config.name for config in both] == ["a #b-seed_0", "a #b-seed_1"]
    assert [config.seed for config in both] == [0, 1]


def test_the_log_is_followed_without_submitits_own_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for line in ("submitit INFO (2026-11-26) - Loading pickle", "12:00:00 rank0 step 1/2", "Error"):
        _say_ours(line)
    assert capsys.readouterr().out.splitlines() == ["12:00:00 rank0 step 1/2", "Error"]


def test_a_login_node_without_gpus_is_no_reason_to_train_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(launch, "dry_run", lambda *_: "")

    # What a dry run says where there is no SLURM is another test's matter.
    submit_run("demo", [f"runs_dir={tmp_path}"], Order(cluster="slurm", dry_run=True))
    assert "give --gpus-per-node" in capsys.readouterr().err

    submit_run(
        "demo", [f"runs_dir={tmp_path}"], Order(cluster="slurm", dry_run=True, gpus_per_node=0)
    )
    assert "give --gpus-per-node" not in capsys.readouterr().err


def test_the_weights_to_start_from_may_be_made_by_an_earlier_job(
    tmp_path: Path, glyph_shards: Path
) -> None:
    start = f"init_from={tmp_path / 'run'}"
    overrides = [f"data.train={glyph_shards}", f"runs_dir={tmp_path}", start]
    order = Order(cluster="slurm", gpus_per_node=0, after="7")
    (config,), _, _ = check_runs("demo", overrides, order)
    assert config.init_from == tmp_path / "run"
    with pytest.raises(CheckpointError, match="no such file or directory; give a file of weights"):
        check_runs("demo", overrides, Order(cluster="slurm", gpus_per_node=0))
