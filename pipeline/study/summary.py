"""What the finished units of a study say, with the seed as the unit of every interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from pipeline.study.design import Arm, Design
from pipeline.study.statistics import Estimate, estimate
from pipeline.study.train import Result

PLATEAU_NATS = 0.1
"""A training has left the plateau once its mean loss is this far below the loss of chance."""


class Results(BaseModel):
    """A study as it is published: the design and every finished unit."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    design: Design
    results: list[Result]


class Effect(NamedTuple):
    """Difference of test accuracy that a change makes, other things equal."""

    data: str
    layout: str
    change: str
    estimate: Estimate | None


@dataclass(frozen=True)
class Summary:
    """Questions to a study, answered from its results alone."""

    design: Design
    results: Sequence[Result]

    def seeds_of(self, data: str, arm: Arm) -> list[Result]:
        """The reported runs of an arm, one per finished seed."""
        return [
            result
            for result in self.results
            if result.unit.role == "seed" and (result.unit.data, result.unit.arm) == (data, arm)
        ]

    def accuracy(self, data: str, arm: Arm) -> Estimate | None:
        return estimate([_test(result) for result in self.seeds_of(data, arm)])

    def first_gradient(self, data: str, arm: Arm) -> float | None:
        """Geometric mean over seeds of the patch embedding's gradient before the first step."""
        firsts = [
            result.probes[0].patch_gradient
            for result in self.seeds_of(data, arm)
            if result.probes and result.probes[0].step == 0
        ]
        positive = [value for value in firsts if value > 0]
        return math.exp(sum(map(math.log, positive)) / len(positive)) if positive else None

    def by_frame(self, data: str, arm: Arm, probe: int) -> list[float]:
        """Historical decay at the first (0) or last (-1) probe, one value per step in time.

        A mean over the runs; empty without probes.
        """
        rows = [run.probes[probe].by_frame for run in self.seeds_of(data, arm) if run.probes]
        return [sum(values) / len(values) for values in zip(*rows, strict=True)]

    def left_plateau(self, data: str, arm: Arm) -> list[int | None]:
        """Per seed, the step by which the loss was PLATEAU_NATS below chance; None if never."""
        return [left_plateau(result) for result in self.seeds_of(data, arm)]

    def effects(self) -> list[Effect]:
        """Start and mask, each within a layout and with the other averaged over, and the layout."""
        changes: dict[str, Callable[[Arm], bool]] = {
            "first-token start": lambda arm: arm.start == "first_token",
            "masked backward": lambda arm: arm.mask,
            "both": lambda arm: arm.mask,
        }
        found = []
        for data in self.design.data:
            for layout in self.design.layouts:
                arms = [arm for arm in self.design.arms if arm.layout == layout]
                for change, is_on in changes.items():
                    if change == "both":  # both changes against neither
                        compared = [a for a in arms if a.mask == (a.start == "first_token")]
                    else:
                        compared = arms
                    found.append(Effect(data, layout, change, self._effect(data, compared, is_on)))
            separate = self._effect(data, self.design.arms, lambda arm: arm.layout == "separate")
            found.append(Effect(data, "-", "separate layout", separate))
        return found

    def _effect(
        self, data: str, arms: Sequence[Arm], is_on: Callable[[Arm], bool]
    ) -> Estimate | None:
        """Mean of the arms with a change less the mean of those without, per complete seed."""
        differences = []
        for seed in self.design.seeds:
            found = {
                result.unit.arm: _test(result)
                for arm in arms
                for result in self.seeds_of(data, arm)
                if result.unit.seed == seed
            }
            if len(found) == len(arms):
                on = [value for arm, value in found.items() if is_on(arm)]
                off = [value for arm, value in found.items() if not is_on(arm)]
                differences.append(sum(on) / len(on) - sum(off) / len(off))
        return estimate(differences)

    def difference(self, data: str, arm: Arm, other: Arm) -> Estimate | None:
        """Test accuracy of an arm less that of another, paired by seed."""
        ours, theirs = (
            {result.unit.seed: _test(result) for result in self.seeds_of(data, each)}
            for each in (arm, other)
        )
        return estimate([ours[seed] - theirs[seed] for seed in ours if seed in theirs])

    def nuisances(self) -> list[Result]:
        return [result for result in self.results if result.unit.role == "nuisance"]

    def finished(self) -> tuple[int, int]:
        """Units finished, and units of the design."""
        return len(self.results), sum(1 for _ in self.design.units())


def left_plateau(result: Result) -> int | None:
    """The end of the first part of the training whose mean loss lies below the plateau.

    A uniform guess has the loss log(classes), whatever the label smoothing.
    """
    done = result.steps if result.diverged_at is None else result.diverged_at
    for index, loss in enumerate(result.losses):
        if loss < math.log(result.classes) - PLATEAU_NATS:
            return round((index + 1) * done / len(result.losses))
    return None


def _test(result: Result) -> float:
    assert result.test_top1 is not None  # only tuning goes without
    return result.test_top1
