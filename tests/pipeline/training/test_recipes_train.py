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
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.commands.plan import make_plan
from pipeline.config import RunConfig, load_config, shipped_recipes
from pipeline.config.tree import flatten
from tests.conftest import ROOT
from tests.pipeline.data.conftest import write_shards

# What follows from shards, in recipes where it is auto.
AUTO_GIVEN = ["model.num_classes=3", "batch.global_size=4", "schedule.epochs=9"]
AUTO_GIVEN += ["schedule.warmup_epochs=1", "eval.every_epochs=1"]
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
        config = load_config(recipe)
        if config.model.num_frames > 1:
            overrides.append("model.num_frames=4")
        if config.task.kind != "classification":
            path = shards.with_name("teacher.pt")
            overrides += [f"task.teacher.path={path}", "task.teacher.width=3"]
        if config.task.kind == "masked":
            overrides.append("task.teacher.img_size=32")
    return overrides


class PatchMeans(nn.Module):
    """A teacher whose features are the mean colours of patches of 16 pixels."""

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        means = functional.avg_pool3d(clips, (1, 16, 16)).flatten(3).permute(0, 2, 3, 1)
        return means, means.mean(-1).exp()


def branches(config: RunConfig) -> str:
    """A text that two configurations share when no branch of the code can tell them apart.

    Words, flags and nulls are kept, since code compares them. Of a number, the code compares
    whether it is below zero, zero, one, or more, and so only that is kept.
    """
    skipped = ("name", "runs_dir", "init_from", "data.train", "task.teacher.path")
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
    trace = torch.jit.trace(PatchMeans(), torch.zeros(1, 3, 4, 32, 32))  # type: ignore[no-untyped-call]
    trace.save(str(out.with_name("teacher.pt")))
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
    if load_config(representative[recipe], AUTO_GIVEN).task.kind == "masked":
        assert math.isnan(top1)
    else:
        assert 0 <= top1 <= 1


def test_recipes_that_differ_in_a_branch_have_runs_of_their_own(
    representative: dict[str, str],
) -> None:
    of = representative
    assert of["k400_t16_f8"] == of["k400_s16_f32"] == of["hmdb51_m16_f16_fold3"]
    differing = ["k400_m16_f16", "ssv2_m16_f16", "k400_videomamba_m16_f16", "in1k_t16_224", "demo"]
    differing += [
        "in1k_m16_224",
        "k400_videomamba_m16_mask_pt_f8",
        "ssv2_videomamba_m16_mask_pt_f8",
    ]
    differing += ["k400_videomamba_m16_mask_ft_f8"]
    differing += [f"ablation_k400_t16_f8_{row}" for row in ("mask", "residual", "both")]
    assert len({of[recipe] for recipe in differing}) == len(differing)


@pytest.mark.parametrize("recipe", shipped_recipes())
def test_plan(recipe: str, shards: Path) -> None:
    config = load_config(recipe, [f"data.train={shards}"])
    world = 4 if config.batch.global_size < 8 else 8
    plan = make_plan(config, world, 1, samples=200_000, step_s=1.0)
    assert plan.micro_batch * plan.accumulation * plan.ranks == config.batch.global_size
    assert plan.steps_per_epoch == 200_000 // config.batch.global_size
    assert plan.clips_per_step == config.batch.global_size * config.data.views
    assert plan.steps is not None
    assert plan.node_hours == pytest.approx(plan.steps / 3600)
