"""Trains tiny runs inside the ranks that a test has started: see tests.ranks.run_on_ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import cast

from pipeline.config import load_config, read_config
from pipeline.health.pulse import Pulse
from pipeline.health.stopping import Stopper
from pipeline.prepare import prepare_run
from pipeline.rundir import End
from pipeline.training import distributed
from pipeline.training.assemble import assemble
from pipeline.training.distributed import World
from pipeline.training.schedule import Schedule
from pipeline.training.trainer import Trainer
from tests import runs


class BadSteps:
    """A schedule whose learning rate is far too high in some steps, so that these ruin the model.

    A bad batch does the same, but no batch of the little data set is as bad to every model.
    """

    def __init__(self, schedule: Schedule, rates: Mapping[int, float]) -> None:
        self._schedule, self._rates = schedule, rates
        self.total_steps = schedule.total_steps

    def lr(self, step: int) -> float:
        return self._rates.get(step, self._schedule.lr(step))


def prepare(world: World, root: Path, shards: Path, name: str, **fields: object) -> Path:
    """Prepare a run on rank 0 and return its directory. Collective."""
    fields = {"tracking__enabled": "false", "data__workers": 0} | fields
    recipe, *overrides = runs.overrides(root, shards, name, **fields)
    config = load_config(recipe, overrides)
    return distributed.on_main(lambda: prepare_run(config))


def train(
    world: World,
    run_dir: Path,
    bad_steps: Mapping[int, float] | None = None,
    change: Callable[[Trainer], None] = lambda trainer: None,
) -> tuple[End, Trainer]:
    """Start or resume a prepared run and train it. Collective.

    `bad_steps`: learning rates, see `BadSteps`. `change` may change the trainer before it begins.
    """
    config = read_config(run_dir)
    with Stopper(config.stop) as stopper, ExitStack() as stack:
        trainer = assemble(config, run_dir, world, stopper, Pulse(world.rank), stack)
        trainer.schedule = cast(Schedule, BadSteps(trainer.schedule, bad_steps or {}))
        change(trainer)
        return trainer.fit(), trainer
