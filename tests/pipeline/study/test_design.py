"""The plan of a study: crossed, balanced in its order, tuned alike, and disjoint in its seeds."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from model.config import ModelConfig
from pipeline.study.design import Settings, Unit
from pipeline.study.designs import DESIGNS, FULL


def test_the_whole_study_crosses_all_it_promises() -> None:
    arms = {(arm.layout, arm.start, arm.mask) for arm in FULL.arms}
    assert arms == set(
        itertools.product(("shared", "separate"), ("zero", "first_token"), (False, True))
    )
    assert len(FULL.seeds) >= 3
    assert FULL.tuning_seed not in FULL.seeds
    units = list(FULL.units())
    for data, arm in itertools.product(FULL.data, (*FULL.arms, *FULL.candidate_arms)):
        of_arm = [u for u in units if (u.data, u.arm) == (data, arm)]
        assert {u.settings for u in of_arm if u.role == "tuning"} == set(FULL.grid)
        assert sorted(u.seed for u in of_arm if u.role == "seed") == sorted(FULL.seeds)
        assert {u.seed for u in of_arm if u.role == "tuning"} == {FULL.tuning_seed}


@pytest.mark.parametrize("name", DESIGNS)
def test_no_two_units_share_a_file_and_names_suit_claims(name: str) -> None:
    names = [unit.name for unit in DESIGNS[name].units()]
    assert len(names) == len(set(names))
    assert not any("." in name or "/" in name for name in names)


def test_what_is_finished_at_any_time_is_balanced() -> None:
    """No combination gets another seed on some data before all have got this one."""
    seeds: Counter[tuple[str, str]] = Counter()
    for unit in FULL.units():
        if unit.role == "seed" and unit.arm in FULL.arms:
            seeds[unit.data, unit.arm.name] += 1
            counts = [seeds[unit.data, arm.name] for arm in FULL.arms]
            assert max(counts) - min(counts) <= 1
    order = list(FULL.units())
    first_candidate = next(i for i, unit in enumerate(order) if unit.arm.options)
    whole_factorial = [
        i for i, u in enumerate(order) if u.role == "seed" and u.seed == 0 and not u.arm.options
    ]
    assert max(whole_factorial) < first_candidate


def test_units_of_an_arm_follow_its_tuning() -> None:
    tuned: Counter[tuple[str, str]] = Counter()
    for unit in FULL.units():
        key = (unit.data, unit.arm.name)
        if unit.role == "tuning":
            tuned[key] += 1
        else:
            assert tuned[key] == len(FULL.grid)


def test_an_arm_sets_the_model_as_its_name_says() -> None:
    arm = FULL.arms[0].with_options(("class_token", "last"))
    assert arm.name == "shared-zero-plain+class_token=last"
    unit = Unit(data="motion", arm=arm, role="seed", seed=0, settings=Settings(lr=1, warmup=0))
    model = FULL.model(unit, classes=8)
    assert (model.layout, model.initial_state, model.mask_backward) == ("shared", "zero", False)
    assert model.class_token == "last"
    assert isinstance(model, ModelConfig)


def test_candidates_have_equal_parameters() -> None:
    from model import VideoMamba

    def parameters(arm: object) -> int:
        unit = Unit(data="motion", arm=arm, role="seed", seed=0)  # type: ignore[arg-type]
        return sum(p.numel() for p in VideoMamba(FULL.model(unit, 8)).parameters())

    assert len({parameters(arm) for arm in (FULL.arms[0], *FULL.candidate_arms)}) == 1
