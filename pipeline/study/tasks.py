"""What distillation, masked pre-training and image pre-training are worth on data made here.

Each stage trains the demo's model with the real tasks, optimizer and schedule; clips are kept in
memory, so that nothing is decoded. A finished stage is not trained again.

```
DIR/<stage>-<seed>.json            its result, written last
DIR/<stage>-<seed>.safetensors     its weights, without the heads that only its task uses
```
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from data_prep.durable import publish
from data_prep.synthetic import CLASSES, LETTERS, SynthOptions, picture
from data_prep.synthetic_letters import letter_picture
from model import VideoMamba, create_model, save_model
from pipeline.config import RunConfig, load_config
from pipeline.study.clips import Clips
from pipeline.study.engine import PlainEngine
from pipeline.training.assemble import build_optimizer, initial_model
from pipeline.training.schedule import Schedule
from pipeline.training.startup import do_without_compiler, step_without_compiler
from pipeline.training.tasks.build import build_task

_CPU = torch.device("cpu")
_BATCH = 32
_OTHER_CLIPS = 7
"""Seed of the clips that the teacher learns from, which no student sees."""


class Stage(BaseModel):
    """One training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    says: str
    steps: int
    data: str = "motion"
    overrides: tuple[str, ...] = ()
    begins_from: str | None = None
    teacher: str | None = None
    seeds: int = 3


class Size(BaseModel):
    """How much is trained, and on how many clips."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: int = 600
    image: int = 600
    masked: int = 300
    tuned: int = 400
    train_clips: int = 4000
    test_clips: int = 800
    model: tuple[str, ...] = ()

    def stages(self) -> tuple[Stage, ...]:
        separate = (
            "model.layout=separate",
            "model.mask_backward=false",
            "model.initial_state=zero",
        )
        masked = ("task.kind=masked", "task.mask_ratio=0.5")
        return (
            Stage(
                name="teacher",
                says="teacher: VideoMamba of the same size, on other clips",
                steps=self.teacher,
                data="other",
                overrides=separate,
                seeds=1,
            ),
            Stage(
                name="image",
                says="one-frame model on pictures of letters (10 classes)",
                steps=self.image,
                data="letters",
                overrides=("model.num_frames=1", f"model.num_classes={len(LETTERS)}"),
            ),
            Stage(name="plain", says="fresh start", steps=self.tuned),
            Stage(
                name="distilled",
                says="fresh start, distilled",
                steps=self.tuned,
                overrides=("task.kind=distillation",),
                teacher="teacher",
            ),
            Stage(
                name="masked",
                says="masked pre-training without labels",
                steps=self.masked,
                overrides=masked,
                teacher="teacher",
            ),
            Stage(
                name="after_masked",
                says="fine-tuned after masked pre-training",
                steps=self.tuned,
                begins_from="masked",
            ),
            Stage(
                name="after_image",
                says="fine-tuned after image pre-training",
                steps=self.tuned,
                begins_from="image",
            ),
        )


class Result(BaseModel):
    """What a finished stage says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Stage
    seed: int
    metrics: Mapping[str, float]
    cpu_s: float
    losses: tuple[float, ...]
    """Mean training loss of ten equal parts of the steps."""


def run_tasks(folder: Path, size: Size, say: Callable[[str], None]) -> list[Result]:
    """Train every stage that has not finished, and return all results."""
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for seed in range(3):
        for stage in size.stages():
            if seed >= stage.seeds:
                continue
            path = folder / f"{stage.name}-{seed}.json"
            if not path.exists():
                publish(path, _train(stage, seed, folder, size).model_dump_json().encode())
                say(f"{path.stem}: {_shown(Result.model_validate_json(path.read_text()))}")
            results.append(Result.model_validate_json(path.read_text()))
    return results


def _shown(result: Result) -> str:
    values = ", ".join(f"{name} {value:.3f}" for name, value in result.metrics.items())
    curve = " ".join(f"{loss:.2f}" for loss in result.losses)
    return f"{values}; {result.cpu_s:.0f} s; {curve}"


def _train(stage: Stage, seed: int, folder: Path, size: Size) -> Result:
    config = _config(stage, seed, folder, size)
    train, test = _clips(stage.data, size)
    do_without_compiler()
    torch.manual_seed(seed)
    model = initial_model(config)
    task = build_task(config, _CPU)
    student = task.student(model).train()
    optimizer = build_optimizer(config, student, _CPU)
    step_without_compiler(optimizer)
    engine = PlainEngine(student, optimizer, precision="fp32", clip_grad=config.optim.clip_grad)
    schedule = Schedule(config.schedule, config.optim.lr, stage.steps)
    losses = torch.zeros(stage.steps)
    began = time.process_time()
    for step, batch in enumerate(islice(train.shuffled(seed, _BATCH), stage.steps)):
        loss, _ = task(engine, batch)
        engine.backward(loss)
        grad_norm = float(engine.squared_grad_norm().sqrt())
        engine.step(schedule.lr(step), grad_norm)
        losses[step] = loss.detach()
    cpu_s = time.process_time() - began
    engine.train(False)
    metrics = task.evaluate(engine, test.in_order(100))
    save_model(folder / f"{stage.name}-{seed}.safetensors", _bare(student, config))
    curve = tuple(float(part.mean()) for part in losses.tensor_split(10))
    return Result(stage=stage, seed=seed, metrics=metrics, cpu_s=cpu_s, losses=curve)


def _config(stage: Stage, seed: int, folder: Path, size: Size) -> RunConfig:
    own = [f"name={stage.name}", f"seed={seed}", *size.model, *stage.overrides]
    if stage.teacher is not None:
        own.append(f"task.teacher.path={folder / f'{stage.teacher}-0.safetensors'}")
    if stage.begins_from is not None:
        own.append(f"init_from={folder / f'{stage.begins_from}-{seed}.safetensors'}")
    # One epoch of the schedule stands for all steps, since it counts the warm-up in epochs.
    own += ["schedule.epochs=1", "schedule.warmup_epochs=0.1", f"batch.global_size={_BATCH}"]
    return load_config("demo", own)


def _bare(student: VideoMamba, config: RunConfig) -> VideoMamba:
    """The student without the heads that only its task uses."""
    bare = create_model(config.model)
    if config.task.kind == "masked":
        del bare.head
    weights = student.state_dict()
    bare.load_state_dict({name: weights[name] for name in bare.state_dict()})
    return bare


def _clips(data: str, size: Size) -> tuple[Clips, Clips]:
    """The clips of training and test."""
    counts = {"train": size.train_clips, "test": size.test_clips}
    seed = _OTHER_CLIPS if data == "other" else 0
    made = []
    for number, (split, count) in enumerate(counts.items()):
        if data == "letters":
            images = [letter_picture(seed, number, index) for index in range(count)]
            classes = len(LETTERS)
        else:
            options = SynthOptions(seed=seed)
            images = [picture(options, number, index) for index in range(count)]
            classes = len(CLASSES)
        pixels = torch.from_numpy(np.stack(images)).permute(0, 4, 1, 2, 3).contiguous()
        made.append(Clips(pixels, torch.arange(count) % classes, classes, split))
    return made[0], made[1]
