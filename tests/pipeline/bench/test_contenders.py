"""Contenders of `vmp bench step`: the recipe's own comes first, absent ones have a reason."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from model.scan import available_backends
from pipeline.bench.contenders import choose, why_no_mamba_block
from pipeline.config import load_config
from pipeline.errors import ConfigError

CPU, GPU = torch.device("cpu"), torch.device("cuda")
TINY = load_config("demo", ["model.preset=videomambapro-tiny-test"])


def test_all_take_part_but_for_the_block_that_needs_a_gpu() -> None:
    taking_part, left_out = choose(TINY, CPU, 1)
    backends = list(available_backends(CPU))
    assert [c.key for c in taking_part] == [*backends, "zero0", "plain-torch"]
    assert taking_part[0].name == f"{backends[0]} scan, ZeRO 1"
    assert left_out == [("mamba-block", "mamba-ssm computes on a CUDA device only")]


def test_those_who_are_asked_for_stand_beside_the_recipe_s_own() -> None:
    taking_part, left_out = choose(TINY, CPU, 1, ["plain-torch", "mamba-block"])
    assert [c.key for c in taking_part] == [available_backends(CPU)[0], "plain-torch"]
    assert [who for who, _ in left_out] == ["mamba-block"]


def test_a_contender_that_nobody_knows_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"--contenders fast: unknown; one of .*plain-torch"):
        choose(TINY, CPU, 1, ["fast"])


def test_ranks_have_no_plain_torch() -> None:
    _, left_out = choose(TINY, CPU, 2)
    assert ("plain-torch", "it has no ranks: start one process") in left_out


def test_the_reference_takes_part_at_a_large_size_only_when_asked_for() -> None:
    large = load_config("demo", ["model.num_frames=64", "model.img_size=112"])
    assert "reference" not in [c.key for c in choose(large, CPU, 1)[0]]
    assert "reference" in [who for who, _ in choose(large, CPU, 1)[1]]
    taking_part, left_out = choose(large, CPU, 1, ["reference"])
    assert "reference" in [c.key for c in taking_part]
    assert left_out == []


def test_an_extension_that_does_not_load_leaves_the_block_out_with_what_it_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "causal_conv1d", None)
    said = why_no_mamba_block(GPU)
    assert said is not None
    assert said.startswith("mamba-ssm does not load: ModuleNotFoundError: ")

    modules = {name: ModuleType(name) for name in ("causal_conv1d", "mamba_ssm")}
    modules["mamba_ssm.modules"] = ModuleType("mamba_ssm.modules")
    modules["mamba_ssm.modules.mamba_simple"] = simple = ModuleType("mamba_simple")
    simple.__dict__["Mamba"] = torch.nn.Identity
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    assert why_no_mamba_block(GPU) is None
