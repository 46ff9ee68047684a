"""Steps that must not be applied are counted, tolerated a while, told from fp16 overflows."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from pipeline.errors import NonFiniteError
from pipeline.training.config import EngineConfig, GuardConfig
from pipeline.training.engine import clip_factor
from pipeline.training.guard import NonFiniteGuard
from pipeline.training.precision import LossScale, resolve_precision


def test_bad_steps_are_borne_in_a_row_as_often_as_allowed() -> None:
    guard = NonFiniteGuard(GuardConfig(max_skipped_in_a_row=2))
    assert not guard.rejects(0, True)
    assert guard.rejects(1, False)
    assert guard.rejects(2, False)
    assert not guard.rejects(3, True)  # the row is over
    assert guard.rejects(4, False)
    assert guard.rejects(5, False)
    with pytest.raises(NonFiniteError, match="at step 6, 3 in a row"):
        guard.rejects(6, False)
    assert guard.skipped == 5


def test_an_overflow_of_fp16_is_skipped_and_no_fault() -> None:
    guard = NonFiniteGuard(GuardConfig())
    for step in range(5):
        assert guard.rejects(step, False, overflow=True)
    assert (guard.skipped, guard.in_a_row) == (5, ())
    with pytest.raises(NonFiniteError):
        guard.rejects(5, False)


def test_the_loss_scale_falls_at_once_and_rises_after_2000_good_steps() -> None:
    scale = LossScale("fp16")
    first = scale.value
    assert scale.overflows(False)
    scale.note(False)
    assert scale.value == first / 2
    for _ in range(1999):
        scale.note(True)
    kept = scale.state
    assert kept is not None
    resumed = LossScale("fp16")
    resumed.restore(kept)
    for each in (scale, resumed):
        assert each.value == first / 2
        each.note(True)
        assert each.value == first


def test_every_step_of_the_loss_scale_by_hand() -> None:
    """Two overflows, 2000 good steps, an overflow, 1999 good ones, an overflow, and so on."""
    scale = LossScale("fp16")
    path = [(False, 2.0**15, 1), (False, 2.0**14, 2)]
    path += [(True, 2.0**14, 2)] * 1999 + [(True, 2.0**15, 2), (False, 2.0**14, 3)]
    path += [(True, 2.0**14, 3)] * 1999 + [(False, 2.0**13, 4)]
    path += [(True, 2.0**13, 4)] * 1999 + [(True, 2.0**14, 4)]
    for number, (finite, value, skipped) in enumerate(path):
        if number % 700 == 0:  # a resume in between changes nothing
            state = scale.state
            scale = LossScale("fp16")
            scale.restore(state)
        scale.note(finite)
        assert (scale.value, scale.skipped) == (value, skipped), number


def test_the_loss_scale_stays_between_its_bounds() -> None:
    scale = LossScale("fp16")
    for _ in range(2000 * 20):
        scale.note(True)
    assert scale.value == 2.0**24
    for _ in range(40):
        scale.note(False)
    assert (scale.value, scale.skipped) == (1.0, 24)  # at 1 the scale explains nothing


def test_a_loss_scale_of_one_explains_no_overflow() -> None:
    scale = LossScale("fp16")
    for _ in range(100):
        scale.note(False)
    assert scale.value == 1.0
    assert not scale.overflows(False)


def test_other_precisions_have_no_loss_scale() -> None:
    scale = LossScale("bf16")
    scale.note(False)
    assert (scale.value, scale.state, scale.overflows(False)) == (1.0, None, False)


@pytest.mark.parametrize(
    ("asked", "device", "expected"),
    [("auto", "cpu", "fp32"), ("auto", "cuda", "bf16"), ("fp16", "cpu", "fp16")],
)
def test_precision_by_device(asked: str, device: str, expected: str) -> None:
    precision = EngineConfig.model_validate({"precision": asked}).precision
    assert resolve_precision(precision, torch.device(device)) == expected


@pytest.mark.parametrize(
    ("norm", "largest", "factor"), [(4.0, 1.0, 0.25), (0.5, 1.0, 1.0), (9.0, None, 1.0)]
)
def test_clipping_shortens_what_is_too_long(
    norm: float, largest: float | None, factor: float
) -> None:
    assert clip_factor(norm, largest) == pytest.approx(factor, rel=1e-5)


def test_compiling_at_stage_3_is_refused_in_one_line() -> None:
    with pytest.raises(ValidationError, match="compile=true cannot trace what ZeRO stage 3"):
        EngineConfig(compile=True, zero_stage=3)
