"""DeepSpeed's state moves as portable fragments from any ZeRO stage to any other."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.dist

WORKER = Path(__file__).with_name("engine_worker.py")


@functools.cache
def results(ranks: int) -> dict[int, dict[str, Any]]:
    """What the worker found for each ZeRO stage, in one launch: starting takes longer than it."""
    stages = [0, 1, 2, 3] if ranks > 1 else [3]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(ranks), str(WORKER), *map(str, stages)]
    done = subprocess.run(
        command, cwd=WORKER.parents[2], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [x.removeprefix("RESULT ") for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    return dict(zip(stages, map(json.loads, lines), strict=True))


@pytest.mark.parametrize(("stage", "ranks"), [(0, 2), (1, 2), (2, 2), (3, 2), (3, 1)])
def test_state_moves_between_stages_and_discarded_steps_leave_no_trace(
    stage: int, ranks: int
) -> None:
    result = results(ranks)[stage]
    assert result["complete"]
    assert result["steps"] == 4  # five steps, one of them discarded
    assert result["poisoned"] == 0.0  # a NaN on one rank is the same as a discarded step
    assert result["given_up"] == ranks  # two in a row: the same error on all, no weight changed
    assert result["resumed"][str(stage)] == 0.0  # bitwise at the same stage
    assert max(result["resumed"].values()) < 1e-6  # fp32 summation order at the others

    assert result["average"] < 1e-6  # float64 by hand
    assert result["averaged_forward"] < 1e-6
    assert result["restored"]
    assert result["half_goes_on"] == 0.0  # an evaluation in between leaves no trace
    assert result["rewound"] == 0.0  # nor do steps before a rollback
