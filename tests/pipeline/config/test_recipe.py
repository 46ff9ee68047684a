"""A recipe states its difference to a base; what comes out is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.config import build_config, load_config, read_config, shipped_recipes, value_origins
from pipeline.config.recipe import description, merge, read_layers
from pipeline.config.tree import flatten
from pipeline.errors import ConfigError


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_sections_merge_key_by_key_and_the_heir_wins(tmp_path: Path) -> None:
    heir = write(
        tmp_path,
        "heir",
        "base: demo\nname: heir\noptim: {lr: 1.0e-4}\ndata: {crop: {kind: random}, hflip: 0.5}\n",
    )
    demo, config = load_config("demo"), load_config(heir)
    assert (config.name, config.optim.lr, config.data.crop.kind) == ("heir", 1e-4, "random")
    assert config.optim.clip_grad == demo.optim.clip_grad == 1.0
    assert config.data.sampling == demo.data.sampling == "dense"
    changed = {"name", "optim.lr", "data.crop.kind", "data.hflip"}
    before, after = (dict(flatten(c.model_dump(mode="json"))) for c in (demo, config))
    assert {key for key in after if before[key] != after[key]} == changed


def test_a_base_is_read_relative_to_its_heir_and_has_a_base_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "group", "middle", "base: ../first.yaml\nseed: 2\nbatch: {max_micro: 3}\n")
    write(tmp_path, "first", "base: demo\nname: first\nseed: 1\nbatch: {global_size: 9}\n")
    last = write(tmp_path, "last", "base: group/middle.yaml\nname: last\n")
    config = load_config(last)
    assert (config.name, config.seed, config.batch.global_size, config.batch.max_micro) == (
        *("last", 2, 9, 3),
    )
    assert config.data == load_config("demo").data


def test_a_preset_of_the_heir_keeps_the_fields_that_its_base_states() -> None:
    pro, plain = load_config("k400_m16_f64_384"), load_config("k400_videomamba_m16_f64_384")
    assert plain.model.layout == "separate"
    assert not plain.model.mask_backward
    assert (plain.model.num_frames, plain.model.img_size) == (64, 384)
    assert pro.model.drop_path_rate == plain.model.drop_path_rate == 0.8


def test_null_clears_what_the_base_states(tmp_path: Path) -> None:
    heir = write(tmp_path, "heir", "base: demo\nname: heir\noptim: {clip_grad: null}\n")
    assert load_config(heir).optim.clip_grad is None


def test_a_run_stores_no_base(tmp_path: Path) -> None:
    config = load_config("ucf101_m16_f16_fold2")
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    stored = yaml.safe_load(config.to_yaml())
    assert "base" not in stored
    assert "preset" not in stored["model"]
    assert read_config(tmp_path) == config
    with pytest.raises(ConfigError, match="unknown key base"):
        build_config({"base": "demo"} | stored, source="stored")


def test_bases_that_form_a_circle(tmp_path: Path) -> None:
    a = write(tmp_path, "a", "base: b.yaml\n")
    write(tmp_path, "b", f"base: ../{tmp_path.name}/a.yaml\n")
    assert f"recipe {a}: its bases form a circle: {a} -> {tmp_path}/b.yaml -> " in refused(a)
    own = write(tmp_path, "own", "base: own.yaml\n")
    assert "its bases form a circle" in refused(own)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("k40", "heir.yaml: base: unknown recipe 'k40': did you mean 'k400'?"),
        ("none.yaml", "heir.yaml: base: recipe {folder}/none.yaml: cannot be read: No such file"),
        ("[demo, k400]", "base: must be the name of a recipe or the path of a .yaml file (got ["),
        ("null", "base: must be the name of a recipe or the path of a .yaml file (got None)"),
        ("''", "base: must be the name of a recipe or the path of a .yaml file (got '')"),
        ("list.yaml", "heir.yaml: base: recipe {folder}/list.yaml: must be a mapping of sections"),
        ("typo.yaml", "{folder}/typo.yaml: unknown key optim.learning: "),
        ('"nul\\0.yaml"', "cannot be read: embedded null byte"),
    ],
)
def test_a_bad_base_is_one_line(tmp_path: Path, base: str, message: str) -> None:
    write(tmp_path, "list", "- 1\n")
    write(tmp_path, "typo", "base: demo\noptim: {learning: 1}\n")
    heir = write(tmp_path, "heir", f"base: {base}\nname: heir\n")
    assert message.format(folder=tmp_path) in refused(heir)


def test_a_base_alone_is_no_recipe_and_an_override_cannot_set_one() -> None:
    assert "k400" not in shipped_recipes()
    with pytest.raises(ConfigError, match="unknown recipe 'k400'"):
        load_config("k400")
    with pytest.raises(ConfigError, match="demo: unknown key base"):
        load_config("demo", ["base=k400"])


def test_the_origin_of_every_value(tmp_path: Path) -> None:
    heir = write(
        tmp_path, "heir", "base: k400_m16_f64_384\nname: heir\nbatch: {global_size: auto}\n"
    )
    origin = value_origins(heir, ["optim.eps=1e-7", "data.crop.kind=none"])
    assert {key: origin(key) for key in ("optim.eps", "data.crop.kind")} == {
        "optim.eps": "command line",
        "data.crop.kind": "command line",
    }
    assert origin("name") == str(heir)
    assert origin("batch.global_size") == f"{heir}, auto"
    assert origin("optim.lr") == "k400_m16_f64_384"
    assert origin("model.num_frames") == "k400_m16_f64"
    assert origin("model.num_classes") == "k400"
    assert origin("data.crop.scale") == "video"
    assert origin("model.embed_dim") == "preset videomambapro-m"
    assert origin("optim.betas") == "default"


@pytest.mark.parametrize("recipe", shipped_recipes())
def test_a_shipped_recipe_states_only_its_difference(recipe: str) -> None:
    *bases, own = read_layers(recipe)
    inherited = dict(flatten(merge(bases)))
    repeated = [key for key, value in flatten(own.own) if inherited.get(key, ...) == value]
    assert not repeated
    assert own.values["name"] == recipe
    assert description(recipe)


def test_the_bases_have_no_name_so_that_no_two_recipes_share_a_run() -> None:
    runnable = set(shipped_recipes())
    bases = {layer.source: layer for name in runnable for layer in read_layers(name)[:-1]}
    assert {name for name, base in bases.items() if "name" in base.values} <= runnable
