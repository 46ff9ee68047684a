"""How a unit computes does not change what it finds: engine, ZeRO stage, scan, precision."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from pipeline.study.design import Unit
from pipeline.study.designs import NUISANCES, SHORT
from pipeline.study.train import Result, run_unit
from pipeline.training.distributed import World
from tests.ranks import run_on_ranks

DESIGN = SHORT.model_copy(update={"nuisances": NUISANCES, "seeds": (0,)})


def _train(_: World, units: list[Unit]) -> list[Result]:
    with tempfile.TemporaryDirectory() as folder:
        return [run_unit(unit, DESIGN.grid[1], DESIGN, Path(folder), {}) for unit in units]


@pytest.mark.dist
@pytest.mark.slow
def test_they_do_not_matter() -> None:
    units = [unit for unit in DESIGN.units() if unit.role == "nuisance"]
    (results,) = run_on_ranks(_train, 1, units)
    for model in {unit.arm.name for unit in units}:
        found = {r.unit.nuisance.name: r.losses for r in results if r.unit.arm.name == model}
        plain = found.pop("auto-fp32-plain")
        assert len(set(plain)) == len(plain)  # it trains
        # bf16 rounds to 8 bits; the others differ by the order of sums at most.
        assert found.pop("auto-bf16-plain") == pytest.approx(plain, rel=2**-8)
        for name in ("chunked", "reference"):
            assert found.pop(f"{name}-fp32-plain") == pytest.approx(plain, rel=1e-5)
        assert sorted(found) == [f"auto-fp32-zero{stage}" for stage in range(4)]
        for losses in found.values():
            assert losses == plain
