"""Run by test_engine.py under torchrun: train a little model at one ZeRO stage, move its state to
another, go on, and print what came out as JSON. Not a test by itself."""

from __future__ import annotations

import json
import math
import sys

import torch
from torch import nn
from torch.func import functional_call

from pipeline.errors import NonFiniteError
from pipeline.training import distributed
from pipeline.training.config import EngineConfig, GuardConfig
from pipeline.training.distributed import World
from pipeline.training.engine import Engine
from pipeline.training.guard import NonFiniteGuard
from pipeline.training.verdict import reach_verdict
from pipeline.training.zero_state import EMA_KEY, STATE_KEYS

State = dict[str, dict[str, torch.Tensor]]
KEYS = (*STATE_KEYS, EMA_KEY)
DECAY = 0.9


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 13), nn.GELU(), nn.Linear(13, 5))


def build(stage: int, world: World) -> Engine:
    model = network()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": 0.05, "lr_scale": 1.0},
        {"params": vectors, "weight_decay": 0.0, "lr_scale": 0.5},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    return Engine(
        model,
        optimizer,
        EngineConfig(zero_stage=stage),
        world=world,
        micro_batch=4 // world.size,
        accumulation=2,
        clip_grad=1.0,
        ema_decay=DECAY,
    )


def train(engine: Engine, steps: range, *, discard: int = -1, poison: tuple[int, ...] = ()) -> None:
    """One optimizer step per number; `discard` is thrown away, `poison` has a NaN on one rank.

    The guard bears one such step, not two in a row.
    """
    guard = NonFiniteGuard(GuardConfig(max_skipped_in_a_row=1))
    share = 4 // engine.world.size
    for step in steps:
        losses = torch.zeros(())
        for part in range(2):
            batch = torch.randn(4, 7, generator=torch.Generator().manual_seed(step * 10 + part))
            mine = batch[engine.world.rank * share :][:share].clone()
            if step in poison and engine.world.rank == engine.world.size - 1:
                mine[0, 0] = float("nan")
            loss = engine(mine).pow(2).mean()
            engine.backward(loss)
            losses += loss.detach()
        squares = engine.squared_grad_norm()
        verdict = reach_verdict(losses, squares, stop=False, world=engine.world)
        if guard.rejects(step, verdict.finite) or step == discard:
            assert step in (discard, *poison)
            engine.discard_gradients()
        else:
            engine.step(1e-2, verdict.grad_norm)


def whole_state(engine: Engine) -> State:
    mine = [
        (f.name, f.start, {key: t.clone() for key, t in f.tensors.items()})
        for f in engine.state.fragments()
    ]
    parts = [mine] * engine.world.size
    torch.distributed.all_gather_object(parts, mine)
    state: State = {}
    for name, shape in engine.state.shapes.items():
        numel = math.prod(shape)
        state[name] = {k: torch.full((numel,), float("nan")) for k in KEYS}
    for part in parts:
        for name, start, tensors in part:
            for key, tensor in tensors.items():
                state[name][key][start : start + tensor.numel()] = tensor
    return state


def difference(first: State, second: State) -> float:
    return max(float((first[n][k] - second[n][k]).abs().max()) for n in first for k in KEYS)


def ranks_that_give_up(stage: int, world: World) -> int:
    """After a NaN on one rank in two steps in a row; all must, with the weights of step 2."""
    engine = build(stage, world)
    train(engine, range(3))
    before = whole_state(engine)
    try:
        train(engine, range(3, 8), poison=(3, 4))
    except NonFiniteError as error:
        said = "at step 4, 2 in a row" in str(error)
        unchanged = difference(before, whole_state(engine)) == 0.0
        return sum(distributed.from_all_ranks(int(said and unchanged)))
    return 0


def average_by_hand(stage: int, world: World) -> State:
    """State after the undisturbed steps, its average computed in float64 from whole weights."""
    engine = build(stage, world)
    averages = {name: p.detach().double().flatten() for name, p in network().named_parameters()}
    for step in range(8):
        train(engine, range(step, step + 1), discard=3)
        if step != 3:  # a discarded step is no step of the average
            for name, tensors in whole_state(engine).items():
                averages[name] = DECAY * averages[name] + (1 - DECAY) * tensors["param"].double()
    state = whole_state(engine)
    for name, average in averages.items():
        state[name][EMA_KEY] = average.float()
    return state


def averaged_forward(engine: Engine) -> tuple[float, bool]:
    """(error of the outputs within `averaged_weights`, are raw outputs and state back after it?)"""
    before = whole_state(engine)
    clip = torch.randn(4, 7, generator=torch.Generator().manual_seed(99))
    with torch.no_grad():
        engine.train(False)
        raw = engine(clip).clone()
        with engine.state.averaged_weights():
            averaged = engine(clip).clone()
        restored = torch.equal(engine(clip), raw)
        engine.train()
    shapes = engine.state.shapes
    weights = {name: t[EMA_KEY].view(shapes[name]) for name, t in before.items()}
    expected = functional_call(network(), weights, clip)
    assert not torch.allclose(raw, averaged, atol=1e-4), "average and weights are the same"
    error = float((averaged - expected).abs().max())
    return error, restored and difference(before, whole_state(engine)) == 0.0


def examine(stage: int, world: World) -> dict[str, object]:
    undisturbed = build(stage, world)
    train(undisturbed, range(8), discard=3)
    expected = whole_state(undisturbed)
    poisoned = build(stage, world)
    train(poisoned, range(8), poison=(3,))

    half = build(stage, world)
    train(half, range(5), discard=3)
    error, restored = averaged_forward(half)
    state, steps = whole_state(half), half.state.adam_steps
    results: dict[str, object] = {
        "steps": steps,
        "complete": all(t.isfinite().all().item() for p in state.values() for t in p.values()),
        "poisoned": difference(expected, whole_state(poisoned)),
        "given_up": ranks_that_give_up(stage, world),
        "average": difference(expected, average_by_hand(stage, world)),
        "averaged_forward": error,
        "restored": restored,
        "resumed": {},
    }
    for other in range(4):
        engine = build(other, world)
        engine.state.load(state, steps)
        train(engine, range(5, 8))
        results["resumed"][other] = difference(expected, whole_state(engine))  # type: ignore[index]
        assert engine.state.adam_steps == 7
    for result in ("half_goes_on", "rewound"):
        train(half, range(5, 8))
        results[result] = difference(expected, whole_state(half))
        half.state.load(state, steps)
    return results


def main() -> None:
    world = distributed.join(timeout_s=120)
    for stage in sys.argv[1:]:
        results = examine(int(stage), world)
        if world.is_main:
            print("RESULT", json.dumps(results))
    distributed.leave()


if __name__ == "__main__":
    main()
