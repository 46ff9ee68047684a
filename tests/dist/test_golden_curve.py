"""The loss curve of a small model: the same on CPU and GPU in fp32, near it in 16 bits."""

from __future__ import annotations

import pytest
import torch

from pipeline.bench.step import synthetic_batch
from pipeline.config import load_config
from pipeline.training import determinism
from pipeline.training.assemble import build_engine, initial_model
from pipeline.training.distributed import World
from pipeline.training.tasks.build import build_task
from pipeline.training.verdict import reach_verdict
from tests.ranks import run_on_ranks

pytestmark = pytest.mark.dist

BAND = 0.05
"""How far a curve in 16 bits may be from fp32, in nats; the curve falls by more than one."""
RECIPE = [
    "model.preset=videomambapro-tiny-test",
    "model.num_classes=8",
    "batch.global_size=8",
    "batch.max_micro=4",
    "loss.label_smoothing=0.1",
    "engine.zero_stage=1",
]


def curves(world: World, precisions: list[str], steps: int) -> dict[str, list[float]]:
    """Losses of every step in each precision, on eight clips of noise that the model memorises."""
    found: dict[str, list[float]] = {}
    for precision in precisions:
        config = load_config("demo", [*RECIPE, f"engine.precision={precision}"])
        determinism.configure(0, deterministic=True, threads=1)
        engine = build_engine(config, initial_model(config), world, 4, 2)
        task, batch = build_task(config, world.device), synthetic_batch(config, 8, world)
        halves = [
            batch._replace(
                **{
                    field: getattr(batch, field)[half]
                    for field in ("clips", "label", "weight", "epoch", "position", "keys")
                }
            )
            for half in (slice(0, 4), slice(4, 8))
        ]
        found[precision] = []
        for _ in range(steps):
            losses = torch.zeros((), device=world.device)
            for half in halves:
                loss, _ = task(engine, half)
                engine.backward(loss)
                losses += loss.detach() / 2
            squares = engine.squared_grad_norm()
            verdict = reach_verdict(losses, squares, stop=False, world=world)
            if verdict.finite:
                engine.step(1e-3, verdict.grad_norm)
            else:
                engine.discard_gradients()
            engine.loss_scale.note(verdict.finite)
            found[precision].append(float(losses))
    return found


def farthest(first: list[float], second: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


def test_on_the_cpu_16_bits_follow_fp32() -> None:
    (found,) = run_on_ranks(curves, 1, ["fp32", "bf16", "fp16"], 30)
    assert found["fp32"][0] - found["fp32"][-1] > 0.4
    for precision in ("bf16", "fp16"):
        assert 0 < farthest(found[precision], found["fp32"]) < BAND


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_follows_the_cpu_for_200_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    (gpu,) = run_on_ranks(curves, 1, ["fp32", "bf16", "fp16"], 200)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (cpu,) = run_on_ranks(curves, 1, ["fp32"], 200)
    assert farthest(gpu["fp32"], cpu["fp32"]) < 1e-4
    for precision in ("bf16", "fp16"):
        assert farthest(gpu[precision], cpu["fp32"]) < BAND
