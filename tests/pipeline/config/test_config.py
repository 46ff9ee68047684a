import re
from pathlib import Path
from typing import Annotated

import pytest
import yaml

from model.operational import OPERATIONAL
from pipeline.config import (
    RunConfig,
    build_config,
    config_difference,
    field_names,
    flatten,
    load,
    load_config,
    shipped_recipes,
)
from pipeline.config import overrides as config_overrides
from pipeline.errors import ConfigError
from pipeline.prepare import prepare_run
from pipeline.training.config import BatchConfig, OptimConfig

# What the fine-tuning recipes take from the shards: see test_auto.py.
IN_PLACE_OF_AUTO = [
    "model.num_classes=3",
    "batch.global_size=8",
    "schedule.epochs=20",
    "schedule.warmup_epochs=2",
    "eval.every_epochs=1",
]


@pytest.mark.parametrize("recipe", shipped_recipes())
def test_shipped_recipes_are_valid_and_survive_yaml(recipe: str) -> None:
    config = load_config(recipe, IN_PLACE_OF_AUTO if recipe.startswith("finetune") else [])
    again = build_config(yaml.safe_load(config.to_yaml()), source="round trip")
    assert again == config
    assert again.identity() == config.identity()


def test_overrides_reach_nested_fields_with_their_types() -> None:
    config = load_config("demo", ["optim.lr=1e-3", "data.crop.kind=random", "eval.crops=3"])
    assert config.optim.lr == 1e-3
    assert config.data.crop.kind == "random"
    assert config.eval.crops == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.depht=3", "unknown key model.depht: did you mean 'depth'?"),
        ("optim.learning=3", "unknown key optim.learning: "),
        ("data.crop.knd=none", "unknown key data.crop.knd: did you mean 'kind'?"),
        ("optim.lr=fast", "optim.lr: "),
        ("optim.lr", "must have the form section.field=value"),
        ("seed.x=1", "'seed' is a value, not a section"),
        ("model.preset=videomambapro-n", "model.preset: "),
        ("name=a/b", "name: must be a plain directory name"),
        ("schedule.warmup_epochs=99", "must be smaller than epochs"),
        ("model.preset=5", "model.preset: must be a name (got 5)"),
        ("eval.every_epochs=inf", "eval.every_epochs: must be a finite number"),
        ("schedule.epochs=.inf", "schedule.epochs: must be a finite number"),
        ("engine.step_timeout_s=inf", "engine.step_timeout_s: must be a finite number"),
        ("data.crop.short_side=[1,inf]", "data.crop.short_side: must be a finite number"),
        ("optim.betas=[2,3]", "optim.betas.0: "),
        ("data.std=[0.2,0,0.2]", "data.std.1: "),
        ("eval.crops=2", "eval.crops: Input should be 1 or 3"),
        ("modl.depth=3", "unknown key modl: did you mean 'model'?"),
        ("optim=3", "optim: "),
    ],
)
def test_a_bad_override_is_named_by_its_dotted_path(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("demo", [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match="unknown recipe 'demmo': did you mean 'demo'"):
        load_config("demmo")


def test_a_recipe_file_that_is_absent_or_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: d\xe9mo\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin.yaml: not UTF-8"):
        load_config(tmp_path / "latin.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="must be a mapping"):
        load_config(tmp_path / "list.yaml")


def test_a_missing_field_says_how_to_set_it(tmp_path: Path) -> None:
    path = tmp_path / "short.yaml"
    path.write_text("name: x\nmodel: {preset: videomambapro-nano}\ndata: {}\n")
    with pytest.raises(ConfigError, match=r"data.train is missing: set it .* data.train=\.\.\."):
        load_config(path)


def test_identity_ignores_what_does_not_change_the_result() -> None:
    base = load_config("demo")
    same = load_config(
        "demo", ["engine.zero_stage=3", "batch.max_micro=4", "data.workers=2", "log_every_steps=1"]
    )
    other = load_config("demo", ["optim.lr=1e-9"])
    assert config_difference(base, same) == []
    (found,) = config_difference(base, other)
    assert str(found) == f"optim.lr: {base.optim.lr} -> 1e-09"


def test_a_run_from_before_there_was_an_average_is_the_same_run(tmp_path: Path) -> None:
    base = load_config("demo")
    old = base.model_dump(mode="json")
    del old["ema"], old["health"], old["eval"]["use_ema"], old["engine"]["step_timeout_s"]
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(old))
    assert load_config(tmp_path / "old.yaml") == base

    watched = load_config("demo", ["health.hang_timeout_s=5", "engine.step_timeout_s=5"])
    assert config_difference(base, watched) == []
    averaged = load_config("demo", ["ema.decay=0.999"])
    assert config_difference(base, averaged) == [("ema.decay", None, 0.999)]
    raw = load_config("demo", ["ema.decay=0.999", "eval.use_ema=false"])
    assert config_difference(averaged, raw) == []


@pytest.mark.parametrize(
    ("world", "expected"), [(1, (8, 3)), (2, (6, 2)), (3, (8, 1)), (8, (3, 1)), (24, (1, 1))]
)
def test_the_global_batch_stays_whatever_the_world(world: int, expected: tuple[int, int]) -> None:
    micro, accumulation = BatchConfig(global_size=24, max_micro=8).split(world)
    assert (micro, accumulation) == expected
    assert micro * accumulation * world == 24


def test_a_global_batch_that_cannot_be_dealt_out_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be dealt to 5 ranks"):
        BatchConfig(global_size=24).split(5)
    with pytest.raises(ConfigError, match="multiple of 2"):
        BatchConfig(global_size=24).split(8, multiple_of=2)


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("name=1e5", "1e5"),
        ("name=a #b", "a #b"),
        ("name=2026-01-01", "2026-01-01"),
        ("name=[x]", "[x]"),
        ("name=true", "true"),
        ("name=null", "null"),
        ("name='a: b'", "a: b"),
    ],
)
def test_a_name_is_text_whatever_yaml_would_make_of_it(override: str, name: str) -> None:
    assert load_config("demo", [override]).name == name


def test_other_fields_of_text_take_it_literally_and_null_where_there_may_be_none() -> None:
    overrides = ["data.train=1e5", "data.val=x: y", "tracking.experiment=0x10", "init_from=~"]
    config = load_config("demo", overrides)
    assert (str(config.data.train), str(config.data.val)) == ("1e5", "x: y")
    assert (config.tracking.experiment, config.init_from) == ("0x10", None)
    assert load_config("demo", ["data.val=a", "data.val=null"]).data.val is None


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "a\u2028b"])
def test_a_name_that_is_more_than_one_line_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="must be a plain directory name") as refused:
        load_config("demo", [f"name={name}"])
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "text",
    ["!!timestamp x", "2020-99-99", "!!int ''", "[" * 20000, "9" * 5000],
    ids=lambda x: x[:9],
)
def test_yaml_that_cannot_be_turned_into_a_value(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"seed=.*not YAML: ") as refused:
        load_config("demo", [f"seed={text}"])
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500
    (tmp_path / "r.yaml").write_text(f"seed: {text}")
    with pytest.raises(ConfigError, match=r"r\.yaml: not YAML: "):
        load_config(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("override", "name"), [("name=1e5", "1e5"), ("name=a #b", "a #b"), ("name=yes", "yes")]
)
def test_the_text_of_a_name_is_taken_as_it_stands(override: str, name: str) -> None:
    config = load_config("demo", [override])
    assert config.name == name
    assert build_config(yaml.safe_load(config.to_yaml()), source="stored") == config


def test_an_optional_path_may_be_emptied() -> None:
    config = load_config("demo", ["data.val=a: b", "init_from=null"])
    assert (config.data.val, config.init_from) == ("a: b", None)
    assert load_config("demo", ["data.val=a", "data.val="]).data.val is None


def test_a_whole_section_that_contradicts_itself_is_not_printed() -> None:
    with pytest.raises(ConfigError) as error:
        load_config("demo", ["model.img_size=33"])
    assert str(error.value) == "demo: model: img_size 33 is not a multiple of patch_size 8"


def test_a_misspelt_section_is_named_before_what_is_missing_without_it(tmp_path: Path) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text("modl: {preset: videomambapro-nano}\n")
    with pytest.raises(ConfigError, match="unknown key modl: did you mean 'model'"):
        load_config(path)


class OptimOfTomorrow(OptimConfig):
    momentum_decay: float = 0.5
    """Belongs to what a run is."""
    chunk: Annotated[int, OPERATIONAL] = 1
    """Does not belong to it."""


class ConfigOfTomorrow(RunConfig):
    optim: OptimOfTomorrow = OptimOfTomorrow()


def test_a_run_stored_today_resumes_when_a_field_is_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [f"runs_dir={tmp_path}", f"data.train={tmp_path}"]
    run_dir = prepare_run(load_config("demo", overrides))
    (run_dir / "checkpoints/step-00000001").mkdir(parents=True)
    (run_dir / "checkpoints/step-00000001/COMMITTED").write_text("{}")
    monkeypatch.setattr(load, "RunConfig", ConfigOfTomorrow)

    prepare_run(load_config("demo", overrides))
    monkeypatch.setattr(config_overrides, "RunConfig", ConfigOfTomorrow)
    prepare_run(load_config("demo", [*overrides, "optim.chunk=8"]))
    with pytest.raises(ConfigError) as error:
        prepare_run(load_config("demo", [*overrides, "optim.momentum_decay=0.75", "seed=4"]))

    assert "optim.momentum_decay: 0.5 -> 0.75; seed: 0 -> 4; stored -> given" in str(error.value)
    assert "give optim.momentum_decay=0.5 seed=0" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "option",
    ["class_token=last", "pooling=mean", "bc_init=fan_in", "delta_init=large"],
)
def test_parity_refuses_what_is_published_nowhere(option: str) -> None:
    assert load_config("demo", [f"model.{option}"]).model.unpublished
    assert load_config("demo", ["optim.profile=parity"]).model.unpublished == ()
    with pytest.raises(ConfigError, match=f"model.{option} is published nowhere") as caught:
        load_config("demo", [f"model.{option}", "optim.profile=parity"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task.kind=maskd"], "'classification', 'distillation', 'masked'"),
        (["task.mask_ratio=0.5"], "task.kind is missing: set it to one of classification"),
        (["task.kind=masked"], "task.teacher is missing: set it in the recipe or with task.teach"),
        (["task.kind=masked", "task.teecher.path=x"], "unknown key task.teecher: did you mean 'te"),
        (["task.kind=masked", "task.teacher.pth=x"], "unknown key task.teacher.pth: did you mean"),
        (["task.kind=masked", "task.teacher.path=x", "task.mask_ratio=1"], "task.mask_ratio: "),
        (
            ["task.kind=masked", "task.teacher.path=x", "model.direction=forward"],
            "task.kind=masked needs model.direction=bidirectional",
        ),
        (["task.kind=masked", "task.teacher.path=x", "data.mix.mixup_alpha=1"], "switch it off"),
    ],
)
def test_a_wrong_task_is_one_line_that_names_the_field(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        load_config("demo", overrides)
    assert str(caught.value).startswith("demo: ")
    assert "\n" not in str(caught.value)


def test_the_path_of_a_teacher_stays_text() -> None:
    task = load_config("demo", ["task.kind=distillation", "task.teacher.path=1e5"]).task
    assert task.kind == "distillation"
    assert task.teacher.path == Path("1e5")


def test_a_run_stored_before_there_were_tasks_classifies() -> None:
    stored = load_config("demo")
    tree = {key: value for key, value in stored.model_dump().items() if key != "task"}
    assert not config_difference(build_config(tree, "stored"), stored)
    masked = load_config("demo", ["task.kind=masked", "task.teacher.path=x"])
    assert {d.key for d in config_difference(stored, masked)} >= {"task.kind", "task.mask_ratio"}


def test_field_names_are_those_of_every_section_and_task() -> None:
    names = list(field_names())
    plain = dict(flatten(load_config("demo").model_dump()))
    assert plain.keys() <= set(names)
    assert set(names) - plain.keys() == {
        "task.mask_ratio", "task.mask", "task.fidelity", "task.weight",
        *(f"task.teacher.{name}" for name in ("path", "width", "img_size", "mean", "std")),
    }  # fmt: skip
