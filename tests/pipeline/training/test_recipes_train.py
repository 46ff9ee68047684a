"""Every shipped recipe can be planned, and trains two steps on tiny shards.

The model and the batch are made small; everything else of the recipe stays on. Recipes whose small
runs take the same branches everywhere share one run, see `branches`.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.plan import make_plan, print_plan
from pipeline.config import RunConfig, load_config, shipped_recipes
from pipeline.config.tree import flatten
from tests.conftest import ROOT
from tests.pipeline.data.conftest import write_shards

# What follows from shards, in recipes where it is auto.
AUTO = ["model.num_classes", "batch.global_size", "schedule.epochs", "schedule.warmup_epochs"]
SMALL = [
    *("model.embed_dim=32", "model.depth=2", "model.d_state=4"),
    *("model.img_size=32", "model.patch_size=16"),
    *("data.workers=0", "batch.max_micro=2", "eval.batch_size=4", "eval.every_epochs=1000"),
    *("schedule.max_steps=2", "log_every_steps=1", "tracking.enabled=false"),
]
OF_SHARDS = ["model.num_classes=3", "batch.global_size=4"]


def small(recipe: str, root: Path, shards: Path) -> list[str]:
    """The overrides that make a run of the recipe small; frames stay one where they are one."""
    overrides = [*SMALL, f"runs_dir={root}", f"data.train={shards}"]
    if not recipe.startswith("finetune"):
        overrides += OF_SHARDS
        if load_config(recipe).model.num_frames > 1:
            overrides.append("model.num_frames=4")
    return overrides


def branches(config: RunConfig) -> str:
    """A text that two configurations share when no branch of the code can tell them apart.

    Words, flags and nulls are kept, since code compares them. Of a number, the code compares
    whether it is below zero, zero, one, or more, and so only that is kept.
    """
    skipped = ("name", "runs_dir", "init_from", "data.train")
    leaves = flatten(config.model_dump(mode="json"))
    return json.dumps([(key, _kind(value)) for key, value in leaves if key not in skipped])


def _kind(value: Any) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_kind(item) for item in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return "between 0 and 1" if 0 < value < 1 else "above 1" if value > 1 else value


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("recipes") / "shards"
    return write_shards(out, {"train": [9, 3, 1, 6, 12, 5, 8, 4], "val": [7, 2]})


@pytest.fixture(scope="module")
def representative(shards: Path) -> dict[str, str]:
    """Recipe -> the first recipe with the same branches."""
    root = shards.parent / "runs"
    seen: dict[str, str] = {}
    return {
        recipe: seen.setdefault(branches(load_config(recipe, small(recipe, root, shards))), recipe)
        for recipe in shipped_recipes()
    }


@pytest.fixture(scope="module")
def results(shards: Path, representative: dict[str, str]) -> dict[str, Any]:
    """The results of one small run for each kind of recipe."""
    root = shards.parent / "runs"
    wanted = [(name, small(name, root, shards)) for name in dict.fromkeys(representative.values())]
    worker = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.training.recipe_worker"],
        input=json.dumps(wanted),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert worker.returncode == 0, worker.stderr[-3000:]
    found: dict[str, Any] = json.loads(worker.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("recipe", shipped_recipes())
def test_two_steps(recipe: str, results: dict[str, Any], representative: dict[str, str]) -> None:
    steps, losses, top1 = results[representative[recipe]]
    assert steps == len(losses) == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert 0 <= top1 <= 1


def test_recipes_that_differ_in_a_branch_have_runs_of_their_own(
    representative: dict[str, str],
) -> None:
    of = representative
    assert of["k400_t16_f8"] == of["k400_s16_f32"] == of["hmdb51_m16_f16_fold3"]
    differing = ["k400_m16_f16", "ssv2_m16_f16", "k400_videomamba_m16_f16", "in1k_t16_224", "demo"]
    differing += [f"ablation_k400_t16_f8_{row}" for row in ("mask", "residual", "both")]
    assert len({of[recipe] for recipe in differing}) == len(differing)


@pytest.mark.parametrize("recipe", shipped_recipes())
def test_plan(recipe: str, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(recipe, [f"data.train={shards}"])
    world = 4 if config.batch.global_size < 8 else 8
    print_plan(make_plan(config, world, 1, samples=200_000, step_s=1.0))
    out = capsys.readouterr().out
    micro, accumulation = config.batch_split(world)
    assert f"= {micro} x {accumulation} accumulation x {world} ranks" in out
    assert f"steps per epoch      {200_000 // config.batch.global_size:,} (200,000 clips)" in out
