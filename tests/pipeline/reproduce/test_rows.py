"""The rows and stages that are shipped fit together, and point at recipes that exist."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from model import create_model
from model.config import resolve_config
from pipeline.config import load_config, shipped_recipes
from pipeline.errors import ConfigError
from pipeline.reproduce import report
from pipeline.reproduce.chain import chain_of, origins
from pipeline.reproduce.rows import load_tables, parse_tables, read_data
from pipeline.reproduce.shards import dataset_of
from pipeline.reproduce.weights import expected_keys


@pytest.fixture(scope="module")
def recipes_of_rows() -> set[str]:
    """The recipes of all chains, without building their configurations."""
    found: set[str] = set()
    left = [recipe for row in load_tables().rows.values() for recipe in row.recipes]
    while left:
        recipe = left.pop()
        found.add(recipe)
        left += origins()[recipe].inputs.values() if recipe in origins() else []
    return found


def test_every_recipe_but_those_for_own_videos_leads_to_a_row(recipes_of_rows: set[str]) -> None:
    own = {"demo", "finetune", "finetune_cpu"}
    assert recipes_of_rows == set(shipped_recipes()) - own
    assert origins().keys() <= recipes_of_rows


def test_every_row_has_a_data_set_with_its_number_of_classes(recipes_of_rows: set[str]) -> None:
    datasets = load_tables().datasets
    for recipe in recipes_of_rows:
        config = load_config(recipe)
        assert datasets[dataset_of(config)].classes == config.model.num_classes
        if facts := datasets[dataset_of(config)]:
            assert facts.splits.keys() == {config.data.train_split, config.data.val_split}


def test_every_claim_has_a_source_and_a_figure() -> None:
    tables = load_tables()
    for row in tables.rows.values():
        for claim in row.claims:
            assert claim.source in tables.sources
            low, high = report.claim_bounds(claim, tables)
            assert 60 < low <= high < 100
    assert set(tables.sources) == {c.source for r in tables.rows.values() for c in r.claims}


def test_a_claim_of_a_gain_is_a_range_above_the_baseline() -> None:
    tables = load_tables()
    row = tables.row("k400/videomambapro-m/f32")
    bounds = {c.source: report.claim_bounds(c, tables) for c in row.claims}
    assert bounds["pro-v4"] == (pytest.approx(82.4 + 1.6), pytest.approx(82.4 + 2.8))
    assert bounds["pro-v3"] == (91.9, 91.9)
    said = " ".join(report.claims(row, tables))
    assert "v3 (2024), abstract (v2 was withdrawn because weights were lost" in said
    assert "points above k400/videomamba-m/f32, so 84.0 to 85.2 %" in said


def test_the_ranks_of_a_table_are_those_of_the_paper() -> None:
    """Spot checks against VideoMamba's MODEL_ZOO, by hand."""
    tables = load_tables()
    expected = {
        "k400/videomamba-ti/f64-384": 80.3,
        "k400/videomamba-s/f16": 80.8,
        "ssv2/videomamba-m/f16-288": 68.4,
        "in1k/videomamba-s/448": 83.2,
        "breakfast/videomamba-s/f64": 97.4,
        "coin/videomamba-m/f32": 88.3,
    }
    found = {name: tables.row(name).claims[0].top1 for name in expected}
    assert found == expected


def test_an_unknown_row_names_the_closest() -> None:
    with pytest.raises(ConfigError, match=r"unknown row 'k400/videomamba-m/f33': did you mean 'k4"):
        load_tables().row("k400/videomamba-m/f33")


def edited(path: str, value: Any) -> Any:
    raw = copy.deepcopy(read_data("rows.yaml"))
    *parents, leaf = path.split("|")
    node = raw
    for parent in parents:
        node = node[int(parent) if isinstance(node, list) else parent]
    node[leaf] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("rows|k400/videomamba-m/f8|claims|0|top1", 806, "less than or equal to 100"),
        ("rows|k400/videomamba-m/f8|claims|0|gain", [1, 2], "state either top1, or gain and over"),
        ("rows|k400/videomamba-m/f8|recipes", [], "at least 1 item"),
        ("throughput|clips_s", 0, "throughput.clips_s: "),
        ("datasets|k400|clases", 400, "datasets"),
    ],
)
def test_a_wrong_table_is_one_line(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_tables(edited(path, value), "rows.yaml")
    assert message in str(error.value)
    assert str(error.value).startswith("rows.yaml: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_the_expected_keys_are_those_of_the_model(layout: str) -> None:
    config = resolve_config("videomambapro-tiny-test", layout=layout)
    own = list(create_model(config).state_dict())
    assert sorted(expected_keys(config, image=False)) == sorted(own)
    assert set(own) - set(expected_keys(config, image=True)) == {"temporal_pos_embedding"}


def test_the_released_files_have_as_many_tensors_as_published() -> None:
    counts = {
        recipe: len(expected_keys(load_config(recipe).model, image=False))
        for recipe in ("k400_m16_f8", "k400_videomamba_m16_f8")
    }
    assert counts == {"k400_m16_f8": 360, "k400_videomamba_m16_f8": 552}


def test_an_input_has_the_shape_that_its_taker_can_fit() -> None:
    for recipe, origin in origins().items():
        source = origin.inputs.get("init_from")
        if source is None:
            continue
        taker, given = (load_config(name).model for name in (recipe, source))
        assert (taker.embed_dim, taker.depth) == (given.embed_dim, given.depth)
        assert taker.layout == given.layout


def test_the_chain_of_a_row_puts_inputs_first() -> None:
    chain = chain_of(["ucf101_m16_f16", "ucf101_m16_f16_fold2"])
    assert [stage.recipe for stage in chain] == [
        *("in1k_s16_224", "in1k_m16_224"),
        *("k400_m16_f16", "ucf101_m16_f16", "ucf101_m16_f16_fold2"),
    ]
    assert str(chain[3].config.init_from) == str(chain[4].config.init_from) == "runs/k400_m16_f16"
