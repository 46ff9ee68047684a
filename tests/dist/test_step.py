"""The step on several ranks: verdict, clipping and loss scale, compared with plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.training.config import EngineConfig
from pipeline.training.distributed import World
from pipeline.training.engine import Engine
from pipeline.training.verdict import reach_verdict
from tests.ranks import run_on_ranks

pytestmark = pytest.mark.dist

STAGES = (0, 1, 2, 3)
CLIP = 0.05  # below the norm of every step here


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 13), nn.GELU(), nn.Linear(13, 5))


def optimizer(model: nn.Module) -> torch.optim.AdamW:
    groups = [{"params": list(model.parameters()), "lr_scale": 1.0}]
    return torch.optim.AdamW(groups, lr=1e-2)


def batch(step: int) -> Tensor:
    return torch.randn(4, 7, generator=torch.Generator().manual_seed(step))


def engine_of(world: World, stage: int, precision: str = "fp32") -> Engine:
    model = network()
    return Engine(
        model,
        optimizer(model),
        EngineConfig.model_validate({"zero_stage": stage, "precision": precision}),
        world=world,
        micro_batch=4 // world.size,
        accumulation=1,
        clip_grad=CLIP,
    )


def train(engine: Engine, steps: int = 3) -> list[float]:
    """The norm of each step, before clipping."""
    share, norms = 4 // engine.world.size, []
    for step in range(steps):
        loss = engine(batch(step)[engine.world.rank * share :][:share]).float().pow(2).mean()
        engine.backward(loss)
        squares = engine.squared_grad_norm()
        verdict = reach_verdict(loss, squares, stop=False, world=engine.world)
        norms.append(engine.unscaled(verdict.grad_norm))
        assert verdict.finite
        engine.step(1e-2, verdict.grad_norm)
    return norms


def output_of(engine: Engine) -> Tensor:
    with torch.no_grad():
        output: Tensor = engine(batch(99)).float()
    return output


def by_plain_torch() -> tuple[list[float], Tensor]:
    model = network()
    adamw, norms = optimizer(model), []
    for step in range(3):
        model(batch(step)).pow(2).mean().backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        adamw.step()
        adamw.zero_grad()
    return norms, model(batch(99)).detach()


def observe(world: World) -> dict[str, Any]:
    device, seen = world.device, {}
    last = world.rank == world.size - 1
    three = torch.tensor(3.0, device=device)
    nan = torch.tensor(float("nan"), device=device)
    seen["fine"] = reach_verdict(three, three, stop=False, world=world)
    seen["stop"] = reach_verdict(three, three, stop=last, world=world)
    seen["loss"] = reach_verdict(nan if last else three, three, stop=False, world=world)
    seen["gradient"] = reach_verdict(three, nan if last else three, stop=False, world=world)
    for stage in STAGES:
        engine = engine_of(world, stage)
        seen[f"norms {stage}"], seen[f"output {stage}"] = train(engine), output_of(engine)
        scaled = engine_of(world, stage)
        scaled.loss_scale.is_on, scaled.loss_scale.value = True, 2.0**10
        seen[f"scaled norms {stage}"] = train(scaled)
        seen[f"scaled output {stage}"] = output_of(scaled)
        half = engine_of(world, stage, "fp16")
        assert half.loss_scale.is_on
        seen[f"half norms {stage}"], seen[f"half output {stage}"] = train(half), output_of(half)
    return seen


@pytest.fixture(scope="module")
def seen() -> list[dict[str, Any]]:
    """What each of two ranks saw."""
    return run_on_ranks(observe, 2)


def test_one_reduction_tells_all_ranks_what_one_rank_knows(seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        assert rank["fine"] == (True, pytest.approx(6**0.5), False, 6.0)
        assert (rank["stop"].finite, rank["stop"].stop) == (True, True)
        assert (rank["loss"].finite, rank["loss"].stop) == (False, False)
        assert not rank["gradient"].finite


@pytest.mark.parametrize("stage", STAGES)
def test_norm_and_clipping_are_those_of_plain_torch(seen: list[dict[str, Any]], stage: int) -> None:
    norms, output = by_plain_torch()
    assert min(norms) > CLIP
    for rank in seen:
        assert rank[f"norms {stage}"] == pytest.approx(norms, rel=1e-5)
        torch.testing.assert_close(rank[f"output {stage}"], output, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_a_loss_scale_changes_nothing_but_what_fp16_rounds(
    seen: list[dict[str, Any]], stage: int
) -> None:
    norms, output = by_plain_torch()
    for rank in seen:
        # A power of two rounds nothing; clipping divides by it in one factor, which rounds once.
        assert rank[f"scaled norms {stage}"] == pytest.approx(norms, rel=1e-5)
        torch.testing.assert_close(rank[f"scaled output {stage}"], output, rtol=1e-5, atol=1e-6)
        assert rank[f"half norms {stage}"] == pytest.approx(norms, rel=1e-2)
        assert rank[f"half norms {stage}"] != rank[f"norms {stage}"]
        torch.testing.assert_close(rank[f"half output {stage}"], output, rtol=1e-2, atol=1e-2)
