"""A rank has imported neither the compiler nor MLflow after its first optimizer step."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from pipeline.training.distributed import free_port
from pipeline.training.startup import absent, step_without_compiler

FIRST_STEP = """
import json, sys
from pipeline.training import determinism, distributed, train
from pipeline.training.assemble import build_engine, initial_model
from pipeline.training.tasks.build import build_task
from pipeline.bench.step import synthetic_batch
from pipeline.config import load_config

tiny = ["model.preset=videomambapro-tiny-test", "batch.global_size=2", "batch.max_micro=2"]
config = load_config("demo", [*tiny, "model.num_classes=8", *sys.argv[1:]])
world = distributed.join(timeout_s=60)
determinism.configure(0, deterministic=True, threads=1)
engine = build_engine(config, initial_model(config), world, 2, 1)
loss, _ = build_task(config, world.device)(engine, synthetic_batch(config, 2, world))
engine.backward(loss)
engine.step(1e-3, float(engine.squared_grad_norm()) ** 0.5)
engine.state.adam_steps, list(engine.state.fragments())
print("LOADED", json.dumps(sorted(sys.modules)))
"""


def loaded_after_a_step() -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", FIRST_STEP],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"MASTER_PORT": str(free_port()), "DS_ACCELERATOR": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("LOADED ")]
    return set(json.loads(line.removeprefix("LOADED ")))


@pytest.mark.slow
def test_a_rank_takes_its_first_step_without_compiler_fsdp_and_mlflow() -> None:
    loaded = loaded_after_a_step()
    assert {"torch", "deepspeed", "model.scan"} <= loaded
    heavy = {
        "torch._dynamo",
        "torch._inductor",
        "torch.distributed.fsdp",
        "torch.distributed.tensor",
    }
    heavy |= {"sympy", "triton", "mlflow", "pandas", "fastapi", "submitit", "mamba_ssm"}
    assert loaded & heavy == set()


def test_an_absent_module_cannot_be_imported_and_comes_back() -> None:
    sys.modules.pop("colorsys", None)
    with absent("colorsys"), pytest.raises(ImportError):
        import colorsys
    import colorsys

    with absent("colorsys"):  # loaded by somebody: it stays theirs
        import colorsys as again
    assert again is colorsys


def test_a_step_without_the_compiler_is_the_same_step() -> None:
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 6)) for _ in range(2)]
    theirs, ours = (torch.optim.AdamW([w], lr=0.1, weight_decay=0.1) for w in weights)
    step_without_compiler(ours)
    for number in range(3):
        for weight, optimizer in zip(weights, (theirs, ours), strict=True):
            weight.grad = torch.cos(weight.detach() * number)
            optimizer.step()
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], torch.linspace(-1, 1, 6))
    assert weights[1].grad_fn is None
