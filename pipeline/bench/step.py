"""`vmp bench step`: an optimizer step next to other scans, ZeRO stages and plain torch.

Every step uses the same synthetic micro-batch in memory, of the recipe's shapes, so no loader is
measured. All contenders start from the same weights and the learning rate is 0. Every step of every
contender therefore does the same work and must give the same loss. Rounds alternate between
contenders, so that a busy machine slows all of them; the median round counts.
"""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from model import resolve_config
from model.flops import training_flops
from pipeline.bench.contenders import (
    Candidate,
    LeftOut,
    Stepper,
    build_stepper,
    choose,
    use_backend,
)
from pipeline.bench.scan import best_of
from pipeline.bench.step_report import Contender, StepReport, StepTime
from pipeline.config import RunConfig
from pipeline.data.batch import Batch
from pipeline.data.config import MixConfig
from pipeline.errors import ConfigError, NonFiniteError
from pipeline.training import determinism, distributed
from pipeline.training.distributed import World
from pipeline.training.precision import AUTOCAST, resolve_precision
from pipeline.training.tasks.classification import ClassificationTask
from pipeline.training.verdict import reach_verdict

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class StepBench(BaseModel):
    """Options of the measurement."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rounds: int = Field(default=5, ge=1)
    """Number of timed steps of each contender."""
    accumulation: int = Field(default=2, ge=1)
    """Largest number of micro-batches per step; a recipe may need hundreds on one device."""
    contenders: tuple[str, ...] = ()
    """Keys of the contenders to measure besides the recipe's own step; () = all."""
    seconds: float = Field(default=math.inf, gt=0)
    """No round begins after this many seconds, except for the first."""


@dataclass(frozen=True)
class _Runner:
    """A stepper with one scan backend; `seen` collects its measurements."""

    seen: Contender
    stepper: Stepper
    model: nn.Module
    backend: str
    held_bytes: int | None
    """Memory of the process before the stepper was built; None if unknown."""

    def step(
        self, task: ClassificationTask, batch: Batch, accumulation: int, world: World
    ) -> StepTime:
        """Time a step as the trainer does it, waiting for each phase, so that the phases add up."""
        use_backend(self.model, self.backend)
        forward_s = backward_s = 0.0
        for _ in range(accumulation):
            begin = _now()
            loss, _ = task(self.stepper, batch)
            middle = _now()
            self.stepper.backward(loss)
            end = _now()
            forward_s += middle - begin
            backward_s += end - middle
        squares = self.stepper.squared_grad_norm()
        verdict = reach_verdict(loss, squares, stop=False, world=world)
        if not verdict.finite:
            raise NonFiniteError(f"{self.seen.name}: loss or gradients are not finite")
        self.stepper.step(0.0, verdict.grad_norm)
        self.seen.losses.append(float(loss.detach()))
        return StepTime(forward_s, backward_s, _now() - end)


def bench_step(
    config: RunConfig,
    bench: StepBench | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> StepReport:
    """Measure all contenders. Collective: call on every rank of torchrun, or in one process.

    `progress` receives a line before each part that takes time.
    Raises ConfigError, ModelError or WeightsError on every rank.
    """
    if config.task.kind != "classification":
        raise ConfigError(
            f"task.kind={config.task.kind}: the step of classification is measured: add "
            "'task={kind: classification}'"
        )
    bench = bench or StepBench()
    began = time.monotonic()
    with ExitStack() as stack:
        world = distributed.join(timeout_s=config.engine.init_timeout_s)
        stack.callback(distributed.leave)
        determinism.configure(
            config.seed, deterministic=config.deterministic, threads=config.launch.threads_per_rank
        )
        config = _without_mixing_alone(config)
        micro_batch, accumulation = config.batch_split(world.size)
        accumulation = min(accumulation, bench.accumulation)
        candidates, left_out = choose(config, world.device, world.size, bench.contenders)
        candidates, failed = _rehearse(candidates, config, world, progress)
        batch = synthetic_batch(config, micro_batch, world)
        task = ClassificationTask(config, world.device)
        runners = list(_runners(candidates, config, world, micro_batch, accumulation))
        for runner in runners:
            progress(f"warming up: {runner.seen.name}")
            step = partial(runner.step, task, batch, accumulation, world)
            step()  # the first step compiles, connects and creates Adam's moments
            peak = _peak_bytes(world.device, step)
            if peak is not None and runner.held_bytes is not None:
                runner.seen.peak_bytes.append(distributed.max_over_ranks(peak - runner.held_bytes))
        products_s: list[float] = []
        for number in range(bench.rounds):
            is_late: bool = distributed.from_main(time.monotonic() - began > bench.seconds)
            if number and is_late:
                break
            progress(f"round {number + 1} of {bench.rounds}, {time.monotonic() - began:.0f} s")
            products_s.append(_largest_product_s(config, micro_batch, world))
            for runner in runners:
                runner.seen.times.append(runner.step(task, batch, accumulation, world))
    clips = micro_batch * config.data.views
    return StepReport(
        config=config,
        micro_batch=micro_batch,
        accumulation=accumulation,
        ranks=world.size,
        device=_name(world.device),
        precision=resolve_precision(config.engine.precision, world.device),
        threads=torch.get_num_threads(),
        flops_per_rank=clips * accumulation * training_flops(config.model),
        product_flops_per_s=_product_flops(config, micro_batch) / statistics.median(products_s),
        contenders=tuple(runner.seen for runner in runners),
        left_out=(*left_out, *failed),
    )


def synthetic_batch(config: RunConfig, micro_batch: int, world: World) -> Batch:
    """Make a batch of noise with random labels, different on each rank, in the loader's memory."""
    model, generator = config.model, torch.Generator().manual_seed(world.rank)
    shape = (micro_batch, config.data.views, 3, model.num_frames, model.img_size, model.img_size)
    clips = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    first = world.rank * micro_batch
    return Batch(
        clips=clips.pin_memory() if world.device.type == "cuda" else clips,
        label=torch.randint(model.num_classes, (micro_batch,), generator=generator),
        weight=torch.ones(micro_batch),
        epoch=torch.zeros(micro_batch, dtype=torch.int64),
        position=torch.arange(first, first + micro_batch),
        keys=[f"synthetic-{first + number}" for number in range(micro_batch)],
        bad=[],
    )


def _without_mixing_alone(config: RunConfig) -> RunConfig:
    """Turn mixing off for micro-batches of one sample, because mixing pairs samples."""
    if config.batch.max_micro > 1:
        return config
    data = config.data.model_copy(update={"mix": MixConfig()})
    return config.model_copy(update={"data": data})


def _rehearse(
    candidates: Sequence[Candidate],
    config: RunConfig,
    world: World,
    progress: Callable[[str], None],
) -> tuple[list[Candidate], list[LeftOut]]:
    """Run a step of each candidate on a tiny model, so that its code is loaded before measuring.

    A candidate that fails on any rank is left out on all. An error of the first candidate, the
    recipe's own step, is raised.
    """
    tiny = resolve_config("videomambapro-tiny-test", scan_backend=config.model.scan_backend)
    config = config.model_copy(update={"model": tiny, "init_from": None})
    batch, task = synthetic_batch(config, 2, world), ClassificationTask(config, world.device)
    able: list[Candidate] = []
    failed: list[LeftOut] = []
    for candidate in candidates:
        progress(f"loading: {candidate.name}")
        reason: str | None = None
        try:
            (runner,) = _runners([candidate], config, world, micro_batch=2, accumulation=1)
            runner.step(task, batch, accumulation=1, world=world)
        except Exception as error:  # a compiled extension can raise any error
            if not able:
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        reasons = [said for said in distributed.from_all_ranks(reason) if said is not None]
        if reasons:
            failed.append(LeftOut(candidate.key, reasons[0]))
        else:
            able.append(candidate)
    return able, failed


def _runners(
    candidates: Sequence[Candidate],
    config: RunConfig,
    world: World,
    micro_batch: int,
    accumulation: int,
) -> Iterator[_Runner]:
    """Yield a runner for each candidate; scans at the same ZeRO stage share an engine."""
    engines: dict[int, tuple[Stepper, nn.Module, int | None]] = {}
    for candidate in candidates:
        stage = candidate.zero_stage
        if stage in engines:
            stepper, model, held = engines[stage]
        else:
            held = _held_bytes(world.device)
            stepper, model = build_stepper(candidate, config, world, micro_batch, accumulation)
            if stage is not None:
                engines[stage] = stepper, model, held
        seen = Contender(candidate.name, same_loss=candidate.same_loss)
        yield _Runner(seen, stepper, model, candidate.backend, held)


def _now() -> float:
    """Wait until the device is idle and return the time in seconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _held_bytes(device: torch.device) -> int | None:
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    _return_free_memory()
    return _status_bytes("VmRSS")


def _peak_bytes(device: torch.device, run: Callable[[], object]) -> int | None:
    """Return the peak memory of `run` in bytes, resident or on a GPU; None if unknown."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device)
    _return_free_memory()
    try:
        _CLEAR_REFS.write_text("5")  # this resets the peak, see man 5 proc
    except OSError:
        return None
    run()
    return _status_bytes("VmHWM")


def _return_free_memory() -> None:
    """Make glibc return freed memory, which would otherwise count for the next contender."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status_bytes(field: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith(field)), None)
    return None if kib is None else int(kib) * 1024


def _largest_product_s(config: RunConfig, micro_batch: int, world: World) -> float:
    """Measure the largest matrix product of a block alone, in seconds, as a bound for a step."""
    precision = resolve_precision(config.engine.precision, world.device)
    options: Any = {"device": world.device, "dtype": AUTOCAST.get(precision, torch.float32)}
    model = config.model
    rows = micro_batch * config.data.views * model.num_tokens
    left = torch.ones(rows, model.embed_dim, **options)
    right = torch.ones(2 * model.inner_dim, model.embed_dim, **options)
    return best_of(lambda: nn.functional.linear(left, right), 5)


def _product_flops(config: RunConfig, micro_batch: int) -> int:
    model = config.model
    rows = micro_batch * config.data.views * model.num_tokens
    return 2 * rows * model.embed_dim * 2 * model.inner_dim


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
