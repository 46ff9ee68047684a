"""Values of a recipe that follow from the shards."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import load_config, read_config
from pipeline.config.auto import DataFacts, settle
from pipeline.errors import ConfigError
from pipeline.prepare import prepare_run
from tests.pipeline.data.conftest import write_shards

ALL_AUTO = {
    "model": {"num_classes": "auto"},
    "batch": {"global_size": "auto"},
    "schedule": {"epochs": "auto", "warmup_epochs": "auto"},
    "eval": {"every_epochs": "auto"},
}


@pytest.mark.parametrize(
    ("clips", "batch", "epochs"),
    [(3, 2, 100), (48, 4, 100), (600, 32, 100), (6000, 64, 22), (240_000, 64, 10)],
)
def test_a_fine_tuning_fits_the_number_of_clips(clips: int, batch: int, epochs: int) -> None:
    tree = settle(ALL_AUTO, lambda: DataFacts(classes=7, clips=clips))
    assert tree["model"] == {"num_classes": 7}
    assert tree["batch"] == {"global_size": batch}
    assert tree["schedule"] == {"epochs": epochs, "warmup_epochs": pytest.approx(epochs / 10)}
    assert tree["eval"] == {"every_epochs": max(1, epochs // 20)}
    assert ALL_AUTO["model"] == {"num_classes": "auto"}  # the recipe stays as it was


def test_what_is_given_counts_and_the_rest_follows_from_it() -> None:
    given = ALL_AUTO | {"batch": {"global_size": 10}, "schedule": {"epochs": 5}}
    tree = settle(given, lambda: DataFacts(classes=7, clips=100))
    assert tree["batch"] == {"global_size": 10}
    assert tree["schedule"] == {"epochs": 5}


def test_nothing_is_read_where_nothing_is_auto() -> None:
    def facts() -> DataFacts:
        raise AssertionError("read")

    assert settle({"model": {"num_classes": 3}}, facts) == {"model": {"num_classes": 3}}


@pytest.mark.parametrize("recipe", ["finetune", "finetune_cpu"])
def test_the_shipped_recipes_become_numbers_before_a_run_starts(
    tmp_path: Path, recipe: str
) -> None:
    shards = write_shards(tmp_path / "shards", {"train": [8] * 40, "val": [8] * 8})
    config = load_config(recipe, [f"data.train={shards}", f"runs_dir={tmp_path}"])
    assert config.model.num_classes == 3
    assert config.batch.global_size == 4
    assert read_config(prepare_run(config)) == config


def test_auto_without_shards_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config("finetune", [f"data.train={tmp_path / 'none'}"])
    assert "values that are auto follow from data.train, which cannot be read" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_auto_that_follows_from_nothing_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"eval\.every_epochs=auto follows from values that are"):
        settle({"eval": {"every_epochs": "auto"}}, lambda: DataFacts(classes=2, clips=9))
