"""The benchmark runs and its parts are consistent; no figure is asserted."""

from __future__ import annotations

import io
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from rich.console import Console

from model.flops import count_parameters
from pipeline.bench import contenders
from pipeline.bench.step import StepBench, bench_step
from pipeline.bench.step_report import Contender, StepReport, StepTime
from pipeline.config import load_config
from tests import runs

pytestmark = pytest.mark.slow

TINY = ["model.preset=videomambapro-tiny-test", "deterministic=false"]


def measure(*overrides: str, recipe: str = "demo") -> StepReport:
    """Runs in a process of its own, because joining a process group changes the environment."""
    config = load_config(recipe, [*TINY, *overrides])
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(bench_step, config, StepBench(rounds=2)).result(timeout=300)


def broken_block(device: torch.device) -> str | None:
    return None  # it loads, so it says


def measure_with_a_block_that_fails() -> StepReport:
    """On the CPU the block of mamba-ssm cannot be built, which only an attempt shows."""
    contenders.why_no_mamba_block = broken_block
    config = load_config("demo", [*TINY, "batch.global_size=2", "batch.max_micro=2"])
    bench = StepBench(rounds=50, seconds=0.001, contenders=("mamba-block",))
    return bench_step(config, bench)


@pytest.fixture(scope="module")
def report() -> StepReport:
    return measure("batch.global_size=8", "batch.max_micro=2", "model.drop_path_rate=0.2")


def test_an_odd_number_of_parameters_can_be_partitioned(report: StepReport) -> None:
    assert report.config.engine.zero_stage == 1
    assert count_parameters(report.config.model) % 2 == 1


def test_contenders_are_the_scans_the_other_stage_and_plain_torch(report: StepReport) -> None:
    names = [contender.name for contender in report.contenders]
    scans = [name.removesuffix(" scan, ZeRO 1") for name in names if name.endswith("ZeRO 1")]
    assert {"chunked", "reference"} <= set(scans)
    assert names[-2:] == [f"{scans[0]} scan, ZeRO 0", f"{scans[0]} scan, plain torch"]
    assert (report.micro_batch, report.accumulation, report.clips) == (2, 2, 4)


def test_every_step_of_every_contender_gives_the_same_loss(report: StepReport) -> None:
    own = report.contenders[0].losses[0]
    for contender in report.contenders:
        assert contender.losses == pytest.approx([own] * 4, rel=1e-5)


def test_the_figures_are_consistent(report: StepReport) -> None:
    for contender in report.contenders:
        assert len(contender.times) == 2
        assert all(min(step) > 0 for step in contender.times)
        assert contender.median in contender.times
        total_s = contender.median.total_s
        assert report.flops_per_s(contender) * total_s == pytest.approx(report.flops_per_rank)
        assert all(peak > 0 for peak in contender.peak_bytes)
    assert report.ratio(report.contenders[0], lambda step: step.total_s) == 1


def test_utilisation_needs_a_known_device(report: StepReport) -> None:
    step = Contender("any", times=[StepTime(0.5, 0.4, 0.1)])
    fields = {"contenders": (step,), "flops_per_rank": 494_500_000_000_000, "precision": "bf16"}
    known = StepReport(**(vars(report) | fields | {"device": "NVIDIA H200"}))
    assert known.mfu(step) == pytest.approx(0.5)
    assert StepReport(**(vars(known) | {"device": "another"})).mfu(step) is None
    assert StepReport(**(vars(known) | {"precision": "fp32"})).mfu(step) is None


def test_the_tables_name_every_contender(report: StepReport) -> None:
    printed = io.StringIO()
    Console(file=printed, width=160).print(report.tables())
    for contender in report.contenders:
        assert contender.name in printed.getvalue()


def test_a_micro_batch_of_one_is_measured_without_mixing() -> None:
    small = ["model.img_size=16", "model.num_frames=4", "batch.max_micro=1", "data.views=2"]
    report = measure(*small, "engine.zero_stage=3", recipe="k400_m16_f16")
    assert report.clips == 4
    assert not report.config.data.mix.is_on
    assert [c.name.partition(", ")[2] for c in report.contenders][-2:] == ["ZeRO 0", "plain torch"]


def test_who_fails_is_left_out_and_the_first_round_is_made_whatever_the_time() -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        report = pool.submit(measure_with_a_block_that_fails).result(timeout=300)
    ((who, why),) = report.left_out
    assert (who, why.partition(":")[0]) == ("mamba-block", "ModuleNotFoundError")
    assert [len(contender.times) for contender in report.contenders] == [1]
    printed = io.StringIO()
    Console(file=printed, width=160).print(report.tables())
    assert f"left out: mamba-block: {why}" in printed.getvalue()


def test_bad_input_is_one_line() -> None:
    output = runs.run("bench", "step", "model.depht=3", expect=2)
    assert output.strip() == "error: demo: unknown key model.depht: did you mean 'depth'?"
