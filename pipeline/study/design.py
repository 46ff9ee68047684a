"""What a study trains: its arms, data sets, tuning grid and seeds, in the order of the runs.

A unit is one training run. The order keeps the design balanced: whatever has been finished when a
study stops holds whole blocks, in which every arm has as many runs as every other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from model.config import ModelConfig, ScanBackend

Layout = Literal["shared", "separate"]
Start = Literal["zero", "first_token"]
Role = Literal["tuning", "seed", "nuisance"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Arm(_Part):
    """One model of the comparison."""

    layout: Layout
    start: Start
    mask: bool
    options: tuple[tuple[str, str], ...] = ()
    """Fields of ModelConfig that no published model sets, for the candidates."""

    @property
    def name(self) -> str:
        start = {"zero": "zero", "first_token": "first"}[self.start]
        base = f"{self.layout}-{start}-{'mask' if self.mask else 'plain'}"
        return "+".join([base, *(f"{key}={value}" for key, value in self.options)])

    def with_options(self, *options: tuple[str, str]) -> Arm:
        return self.model_copy(update={"options": options})

    @property
    def overrides(self) -> dict[str, Any]:
        """Fields of ModelConfig."""
        return {
            "layout": self.layout,
            "initial_state": self.start,
            "mask_backward": self.mask,
            **dict(self.options),
        }


class Settings(_Part):
    """Hyper-parameters that are tuned, alike for every arm."""

    lr: float
    warmup: float
    """Share of the steps."""

    @property
    def name(self) -> str:
        return f"lr{self.lr:g}-warm{self.warmup:g}".replace(".", "p")


class Nuisance(_Part):
    """How a unit computes, which must not change what it finds."""

    backend: ScanBackend = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """A ZeRO stage of DeepSpeed on one rank; None = the study's plain loop."""

    @property
    def name(self) -> str:
        engine = "plain" if self.zero_stage is None else f"zero{self.zero_stage}"
        return f"{self.backend}-{self.precision}-{engine}"


class DataSet(_Part):
    """A set of rendered clips, and the length of a training on it."""

    kind: Literal["motion", "events"]
    frames: PositiveInt
    patch: PositiveInt
    """Height and width of a patch in pixels."""
    steps: PositiveInt
    """Optimizer steps of every unit."""


class Unit(_Part):
    """One training run."""

    data: str
    arm: Arm
    role: Role
    seed: int
    settings: Settings | None = None
    """None = those that tuning chose for this arm on these data."""
    nuisance: Nuisance = Nuisance()

    @property
    def name(self) -> str:
        """Name of the unit's file, which no other unit has; without a dot, for the claims."""
        detail = {
            "tuning": f"tuning-{self.settings.name if self.settings else ''}",
            "seed": f"seed-{self.seed}",
            "nuisance": f"nuisance-{self.nuisance.name}",
        }[self.role]
        return f"{self.data}--{self.arm.name}--{detail}"


class Design(_Part):
    """A whole study. Arms, seeds and grid are crossed; `units` gives the order."""

    title: str
    data: dict[str, DataSet]
    size: PositiveInt = 16
    """Pixels per side of a frame."""
    embed_dim: PositiveInt = 32
    depth: PositiveInt = 4
    d_state: PositiveInt = 8
    batch: PositiveInt = 32
    train_clips: PositiveInt = 6000
    val_clips: PositiveInt = 800
    test_clips: PositiveInt = 2000
    weight_decay: float = Field(default=0.05, ge=0)
    label_smoothing: float = Field(default=0.05, ge=0)
    clip_grad: float = Field(default=1.0, gt=0)
    learning_rates: tuple[float, ...]
    warmups: tuple[float, ...]
    tuning_seed: int = 1000
    seeds: tuple[int, ...] = (0, 1, 2)
    layouts: tuple[Layout, ...] = ("shared", "separate")
    candidate_arms: tuple[Arm, ...] = ()
    """Models with options of ours, compared with those that lack the options."""
    nuisances: tuple[Nuisance, ...] = ()
    probe_at: tuple[float, ...] = (0.0, 0.03, 0.06, 0.125, 0.25, 0.5, 1.0)
    """Shares of the steps at which signal propagation is measured."""
    probe_clips: PositiveInt = 32

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The eight combinations."""
        choices = itertools.product(self.layouts, ("zero", "first_token"), (False, True))
        return tuple(Arm(layout=lay, start=start, mask=mask) for lay, start, mask in choices)

    @property
    def grid(self) -> tuple[Settings, ...]:
        pairs = itertools.product(self.learning_rates, self.warmups)
        return tuple(Settings(lr=lr, warmup=warmup) for lr, warmup in pairs)

    def model(self, unit: Unit, classes: int) -> ModelConfig:
        return ModelConfig(
            embed_dim=self.embed_dim,
            depth=self.depth,
            img_size=self.size,
            patch_size=self.data[unit.data].patch,
            num_frames=self.data[unit.data].frames,
            num_classes=classes,
            d_state=self.d_state,
            scan_backend=unit.nuisance.backend,
            **unit.arm.overrides,
        )

    def tuning(self, data: str, arm: Arm) -> tuple[Unit, ...]:
        """The units by whose validation accuracy the settings of an arm are chosen."""
        return tuple(
            Unit(data=data, arm=arm, role="tuning", seed=self.tuning_seed, settings=settings)
            for settings in self.grid
        )

    def units(self) -> Iterator[Unit]:
        """All units in the order of running: block by block, each of which is balanced."""
        first, *others = self.seeds
        for data in self.data:
            yield from self._tuned_block(data, self.arms, first)
        for seed in others:
            for data in self.data:
                yield from _seed_block(data, self.arms, seed)
        for number, data in enumerate(self.data):
            yield from self._tuned_block(data, self.candidate_arms, first)
            for seed in others:
                yield from _seed_block(data, self.candidate_arms, seed)
            if number == 0:
                yield from self._nuisance_block(data)

    def _tuned_block(self, data: str, arms: tuple[Arm, ...], seed: int) -> Iterator[Unit]:
        tuning = [self.tuning(data, arm) for arm in arms]
        for of_one_setting in zip(*tuning, strict=True):
            yield from of_one_setting
        yield from _seed_block(data, arms, seed)

    def _nuisance_block(self, data: str) -> Iterator[Unit]:
        both = Arm(layout="shared", start="first_token", mask=True)
        neither = Arm(layout="separate", start="zero", mask=False)
        for arm in (both, neither):
            for nuisance in self.nuisances:
                yield Unit(
                    data=data,
                    arm=arm,
                    role="nuisance",
                    seed=self.seeds[0],
                    nuisance=nuisance,
                )


def _seed_block(data: str, arms: tuple[Arm, ...], seed: int) -> Iterator[Unit]:
    for arm in arms:
        yield Unit(data=data, arm=arm, role="seed", seed=seed)
