"""`vmp bench step`: what an optimizer step costs, beside other scans, ZeRO stages and plain torch.

A synthetic micro-batch of the recipe's shapes lies in memory and is used again and again, so no
loader is measured. All contenders start from the same weights, and the learning rate is 0: every
step of every contender does the same work and must give the same loss. Rounds alternate between
contenders, so that a busy machine is busy for all of them; the median round counts.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from model import VideoMamba, resolve_config
from model.flops import training_flops
from model.mixer import Mixer
from model.scan import available_backends
from pipeline.bench.scan import best_of
from pipeline.bench.step_report import Contender, StepReport, StepTime
from pipeline.config import RunConfig
from pipeline.data.batch import Batch
from pipeline.data.config import MixConfig
from pipeline.training import determinism, distributed
from pipeline.training.assemble import build_engine, build_optimizer, build_task, initial_model
from pipeline.training.config import GuardConfig
from pipeline.training.distributed import World
from pipeline.training.engine import resolve_precision
from pipeline.training.guard import NonFiniteGuard
from pipeline.training.task import ClassificationTask

_LONGEST_LOOP = 2_000  # tokens x blocks; beyond it the reference, a loop over tokens, is left out
_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class StepBench(BaseModel):
    """How to measure."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rounds: int = Field(default=5, ge=1)
    """Timed steps of each contender."""
    accumulation: int = Field(default=2, ge=1)
    """Micro-batches of a step at most; a recipe may ask for hundreds on one device."""


class Stepper(Protocol):
    """What a step needs of an engine: the whole surface that is measured."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor: ...

    def backward(self, loss: Tensor) -> None: ...

    def gradients_are_finite(self) -> Tensor: ...

    def step(self, lr: float) -> Tensor | float: ...


class PlainTorch:
    """The peer of our engine: the same step on one device with nothing but torch."""

    def __init__(self, config: RunConfig, model: VideoMamba, world: World, accumulation: int):
        self.model = model.to(world.device)
        self.optimizer = build_optimizer(config, model)
        self.clip_grad = config.optim.clip_grad
        self.accumulation = accumulation
        precision = resolve_precision(config.engine.precision, world.device)
        self._autocast = torch.autocast(
            world.device.type, torch.bfloat16, enabled=precision == "bf16"
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        with self._autocast:
            logits: Tensor = self.model(*args, **kwargs)
        return logits

    def backward(self, loss: Tensor) -> None:
        (loss / self.accumulation).backward()  # type: ignore[no-untyped-call]

    def gradients_are_finite(self) -> Tensor:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.stack([torch.isfinite(gradient).all() for gradient in gradients]).all()

    def step(self, lr: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm


@dataclass(frozen=True)
class _Runner:
    """A stepper with one scan backend; `seen` collects what is measured."""

    seen: Contender
    stepper: Stepper
    model: nn.Module
    backend: str
    held_bytes: int | None
    """Of the process before the stepper was built."""

    def step(self, task: ClassificationTask, batch: Batch, accumulation: int) -> StepTime:
        """As the trainer does it; each phase is waited for, so that the three add up."""
        _use_backend(self.model, self.backend)
        guard = NonFiniteGuard(GuardConfig())
        forward_s = backward_s = 0.0
        for _ in range(accumulation):
            begin = _now()
            loss, _ = task(self.stepper, batch)
            middle = _now()
            self.stepper.backward(loss)
            end = _now()
            forward_s += middle - begin
            backward_s += end - middle
        guard.rejects(0, loss, self.stepper.gradients_are_finite())  # raises rather than rejects
        self.stepper.step(0.0)
        self.seen.losses.append(float(loss.detach()))
        return StepTime(forward_s, backward_s, _now() - end)


def bench_step(config: RunConfig, bench: StepBench | None = None) -> StepReport:
    """Measure all contenders. Collective: call on every rank of torchrun, or in one process.

    Raises ConfigError, ModelError or WeightsError on every rank alike.
    """
    bench = bench or StepBench()
    with ExitStack() as stack:
        world = distributed.join(timeout_s=config.engine.init_timeout_s)
        stack.callback(distributed.leave)
        determinism.configure(
            config.seed, deterministic=config.deterministic, threads=config.launch.threads_per_rank
        )
        config = _without_mixing_alone(config)
        micro_batch, accumulation = config.batch_split(world.size)
        accumulation = min(accumulation, bench.accumulation)
        _rehearse(config, world)
        batch = synthetic_batch(config, micro_batch, world)
        task = build_task(config, world.device)
        runners = list(_runners(config, world, micro_batch, accumulation))
        for runner in runners:
            runner.step(task, batch, accumulation)  # compiles, connects, makes Adam's moments
            peak = _peak_bytes(world.device, partial(runner.step, task, batch, accumulation))
            if peak is not None and runner.held_bytes is not None:
                runner.seen.peak_bytes.append(distributed.max_over_ranks(peak - runner.held_bytes))
        products_s = []
        for _ in range(bench.rounds):
            products_s.append(_largest_product_s(config, micro_batch, world))
            for runner in runners:
                runner.seen.times.append(runner.step(task, batch, accumulation))
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
    )


def synthetic_batch(config: RunConfig, micro_batch: int, world: World) -> Batch:
    """Noise and random labels, another for each rank, where the loader would leave them."""
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
    """Mixing pairs samples; a micro-batch of one is measured without it."""
    if config.batch.max_micro > 1:
        return config
    data = config.data.model_copy(update={"mix": MixConfig()})
    return config.model_copy(update={"data": data})


def _rehearse(config: RunConfig, world: World) -> None:
    """Every contender on a tiny model, so that loading its code is no part of its memory."""
    tiny = resolve_config("videomambapro-tiny-test", scan_backend=config.model.scan_backend)
    config = config.model_copy(update={"model": tiny, "init_from": None})
    micro_batch = 2
    batch, task = synthetic_batch(config, micro_batch, world), build_task(config, world.device)
    for runner in _runners(config, world, micro_batch, accumulation=1):
        runner.step(task, batch, accumulation=1)


def _runners(
    config: RunConfig, world: World, micro_batch: int, accumulation: int
) -> Iterator[_Runner]:
    """The recipe's own step first; then what it is compared with."""
    stage = config.engine.zero_stage
    own, *others = distributed.from_main(_backends(config, world.device))
    for zero_stage, backends in ((stage, [own, *others]), (0 if stage else 1, [own])):
        held, model = _held_bytes(world.device), _model(config)
        engine_config = config.engine.model_copy(update={"zero_stage": zero_stage})
        changed = config.model_copy(update={"engine": engine_config})
        engine = build_engine(changed, model, world, micro_batch, accumulation)
        for backend in backends:
            seen = Contender(f"{backend} scan, ZeRO {zero_stage}")
            yield _Runner(seen, engine, model, backend, held)
    if world.size == 1:
        held, model = _held_bytes(world.device), _model(config)
        plain = PlainTorch(config, model, world, accumulation)
        yield _Runner(Contender(f"{own} scan, plain torch"), plain, model, own, held)


def _backends(config: RunConfig, device: torch.device) -> list[str]:
    """The recipe's first; without those that take minutes."""
    model = config.model
    ready = list(available_backends(device))
    own = ready[0] if model.scan_backend == "auto" else model.scan_backend
    if model.num_tokens * model.depth > _LONGEST_LOOP:
        ready.remove("reference")
    return [own, *(name for name in ready if name != own)]


def _model(config: RunConfig) -> VideoMamba:
    torch.manual_seed(config.seed)
    return initial_model(config).train()


def _use_backend(model: nn.Module, backend: str) -> None:
    for module in model.modules():
        if isinstance(module, Mixer):
            module.config = module.config.model_copy(update={"scan_backend": backend})


def _now() -> float:
    """Seconds, once the device has done all it was asked for."""
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
    """Most memory of this process while `run` ran: resident, or allocated on a GPU."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device)
    _return_free_memory()
    try:
        _CLEAR_REFS.write_text("5")  # the peak starts again from here: man 5 proc
    except OSError:
        return None
    run()
    return _status_bytes("VmHWM")


def _return_free_memory() -> None:
    """What glibc keeps of freed memory would count for the next contender."""
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
    """Seconds of the largest matrix product of a block alone: the rate that a step can hope for."""
    bf16 = resolve_precision(config.engine.precision, world.device) == "bf16"
    options: Any = {"device": world.device, "dtype": torch.bfloat16 if bf16 else torch.float32}
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
