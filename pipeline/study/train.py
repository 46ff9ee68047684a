"""One unit of a study: a model trained with the real parts, probed on the way, then evaluated."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict

from model import VideoMamba, create_model
from pipeline.config import RunConfig, load_config
from pipeline.inference.evaluate import evaluate
from pipeline.study.clips import Clips, load_clips
from pipeline.study.design import Design, Settings, Unit
from pipeline.study.engine import StepEngine, plain_engine
from pipeline.study.signal import probe
from pipeline.training import distributed
from pipeline.training.assemble import build_engine
from pipeline.training.schedule import Schedule
from pipeline.training.startup import do_without_compiler
from pipeline.training.tasks.build import build_task

CURVE_POINTS = 24
"""Means of the training loss that a unit records."""
_EVAL_BATCH = 100
_CPU = torch.device("cpu")


class Probe(BaseModel):
    """Signal propagation at one step; see `pipeline.study.signal`."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    step: int
    patch_gradient: float
    by_frame: list[float]


class Result(BaseModel):
    """What a finished unit says."""

    # A diverging unit may have a loss of NaN, which must survive the file.
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="constants"
    )

    unit: Unit
    settings: Settings
    """Those of the unit, or those that tuning chose."""
    classes: int
    parameters: int
    steps: int
    diverged_at: int | None
    """First step whose loss or gradient was not finite; the unit ended there."""
    val_top1: float
    val_loss: float
    test_top1: float | None
    """None for tuning, which must not see the test clips."""
    test_loss: float | None
    test_clips: int
    losses: list[float]
    """Mean training loss of each of CURVE_POINTS equal parts of the steps."""
    probes: list[Probe]
    cpu_s: float
    """CPU seconds of training and probing, rendering and evaluation left out."""
    host: Mapping[str, str]
    """Processor, torch and commit."""


def run_unit(
    unit: Unit,
    settings: Settings,
    design: Design,
    clips: Path,
    host: Mapping[str, str],
) -> Result:
    """Train a unit from its seed on one core and evaluate its last weights.

    The result depends on the arguments alone, up to the rounding of the machine. A step that is not
    finite ends the training; the weights before it are evaluated.
    """
    data = {split: load_clips(clips, design, unit.data, split) for split in ("train", "val")}
    config = run_config(unit, settings, design, data["train"].classes)
    torch.manual_seed(unit.seed)
    model = create_model(config.model)
    steps = design.data[unit.data].steps
    engine = _engine(unit, config, model)
    began = time.process_time()
    losses, probes, diverged_at = _train(unit, design, config, model, engine, data)
    cpu_s = time.process_time() - began
    engine.train(False)
    val = evaluate(engine, data["val"].in_order(_EVAL_BATCH), config.data, _CPU)
    test = None
    if unit.role != "tuning":
        unseen = load_clips(clips, design, unit.data, "test")
        test = evaluate(engine, unseen.in_order(_EVAL_BATCH), config.data, _CPU)
    return Result(
        unit=unit,
        settings=settings,
        classes=data["train"].classes,
        parameters=sum(p.numel() for p in model.parameters()),
        steps=steps,
        diverged_at=diverged_at,
        val_top1=val.top1,
        val_loss=val.loss,
        test_top1=None if test is None else test.top1,
        test_loss=None if test is None else test.loss,
        test_clips=0 if test is None else test.num_samples,
        losses=losses,
        probes=probes,
        cpu_s=round(cpu_s, 2),
        host=host,
    )


def run_config(unit: Unit, settings: Settings, design: Design, classes: int) -> RunConfig:
    """The configuration with which `vmp train` would train a unit: the demo's, and the design's."""
    config = load_config("demo")
    steps = design.data[unit.data].steps
    optim = {"lr": settings.lr, "weight_decay": design.weight_decay, "clip_grad": design.clip_grad}
    # One epoch of the schedule stands for all steps, since it counts warm-up in epochs.
    schedule = {"epochs": 1.0, "warmup_epochs": settings.warmup, "min_lr": settings.lr / 100}
    engine = {"precision": unit.nuisance.precision, "zero_stage": unit.nuisance.zero_stage or 0}
    changes = {
        "name": unit.name.replace("+", "_").replace("=", "_"),
        "seed": unit.seed,
        "deterministic": False,
        "model": design.model(unit, classes).model_dump(),
        "batch": {"global_size": design.batch, "max_micro": design.batch},
        "loss": {"label_smoothing": design.label_smoothing},
        "optim": optim,
        "schedule": schedule | {"max_steps": steps, "warmup_lr": 0.0},
        "engine": engine,
    }
    dumped = config.model_dump()
    for section, values in changes.items():
        dumped[section] = dumped[section] | values if isinstance(values, dict) else values
    return RunConfig.model_validate(dumped)


def _engine(unit: Unit, config: RunConfig, model: VideoMamba) -> StepEngine:
    if unit.nuisance.zero_stage is None:
        return plain_engine(config, model)
    do_without_compiler()
    if not dist.is_initialized():
        distributed.join(timeout_s=600)
    world = distributed.World(0, 1, 0, _CPU)
    return build_engine(config, model, world, config.batch.global_size, 1)


def _train(
    unit: Unit,
    design: Design,
    config: RunConfig,
    model: VideoMamba,
    engine: StepEngine,
    data: Mapping[str, Clips],
) -> tuple[list[float], list[Probe], int | None]:
    """Return the curve of losses, the probes, and the step that was not finite, if any."""
    task = build_task(config, _CPU)
    steps = design.data[unit.data].steps
    schedule = Schedule(config.schedule, config.optim.lr, steps)
    probed = next(data["val"].dealt(0, min(design.probe_clips, len(data["val"]))))
    # Only reported units are probed; ZeRO 3, among the nuisances, holds no whole weights.
    shares = design.probe_at if unit.role == "seed" else ()
    probe_steps = {round(share * steps) for share in shares}
    losses = torch.zeros(steps)
    probes: list[Probe] = []
    diverged_at = None
    engine.train()
    batches = data["train"].dealt(unit.seed, config.batch.global_size)
    for step, batch in enumerate(islice(batches, steps)):
        if step in probe_steps:
            probes.append(Probe(step=step, **probe(model, task, probed)._asdict()))
        loss, _ = task(engine, batch)
        engine.backward(loss)
        grad_norm = float(engine.squared_grad_norm().sqrt())
        losses[step] = loss.detach()
        if not math.isfinite(grad_norm) or not math.isfinite(float(losses[step])):
            diverged_at = step
            break
        engine.step(schedule.lr(step), grad_norm)
    if steps in probe_steps and diverged_at is None:
        probes.append(Probe(step=steps, **probe(model, task, probed)._asdict()))
    done = steps if diverged_at is None else diverged_at
    parts = losses[:done].tensor_split(min(CURVE_POINTS, done)) if done else ()
    return [float(part.mean()) for part in parts], probes, diverged_at
