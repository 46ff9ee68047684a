"""What distillation, masked pre-training and image pre-training are worth on data made here.

Each stage trains the demo's model with the real tasks, optimizer and schedule; clips are kept in
memory, so that nothing is decoded. A finished stage is not trained again.

```
DIR/<stage>-<seed>.safetensors     its weights, without the heads that only its task uses
DIR/<stage>-<seed>.json            its result, written last
```
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from data_prep.durable import publish
from data_prep.synthetic import CLASSES, LETTERS, SynthOptions, picture
from data_prep.synthetic_letters import letter_picture
from model import VideoMamba, create_model, save_model
from pipeline.config import RunConfig, load_config
from pipeline.errors import ConfigError
from pipeline.study.clips import Clips
from pipeline.study.engine import plain_engine
from pipeline.study.statistics import estimate
from pipeline.training.assemble import initial_model
from pipeline.training.schedule import Schedule
from pipeline.training.tasks.build import build_task

_CPU = torch.device("cpu")
_BATCH = 32
_OTHER_CLIPS = 7
"""Seed of the clips that the teacher learns from, which no student sees."""
SEEDS = 3


class Stage(BaseModel):
    """One training, repeated for several seeds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    title: str
    """Its name in the table."""
    steps: int
    data: Literal["motion", "other", "letters"] = "motion"
    """Clips of eight motions; others of the same kind, which no student sees; still letters."""
    overrides: tuple[str, ...] = ()
    """Changes of the recipe `demo`."""
    begins_from: str | None = None
    """Stage whose weights of the same seed it begins with."""
    teacher: str | None = None
    """Stage whose weights of seed 0 are its teacher."""
    seeds: int = SEEDS


class Size(BaseModel):
    """How much is trained, on how many clips. The recipe `demo` decides everything else."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    teacher: int = 600
    """Steps of 32 clips; so are the next three."""
    image: int = 500
    masked: int = 200
    tuned: int = 250
    train_clips: int = 4000
    test_clips: int = 400
    model: tuple[str, ...] = ()
    """Changes of the recipe for every stage."""

    def stages(self) -> tuple[Stage, ...]:
        """Every training, each after those that it needs."""
        letters = ("model.num_frames=1", f"model.num_classes={len(LETTERS)}")
        return (
            Stage(
                name="teacher",
                title="the teacher: layout `separate`, on other clips",
                steps=self.teacher,
                data="other",
                overrides=(
                    "model.layout=separate",
                    "model.mask_backward=false",
                    "model.initial_state=zero",
                ),
                seeds=1,
            ),
            Stage(
                name="image",
                title="pictures of ten letters, one frame",
                steps=self.image,
                data="letters",
                overrides=letters,
            ),
            Stage(name="plain", title="fresh start", steps=self.tuned),
            Stage(
                name="distilled",
                title="fresh start, distilled",
                steps=self.tuned,
                overrides=("task.kind=distillation",),
                teacher="teacher",
            ),
            Stage(
                name="masked",
                title="masked pre-training, no labels",
                steps=self.masked,
                overrides=("task.kind=masked", "task.mask_ratio=0.5"),
                teacher="teacher",
            ),
            Stage(
                name="after_masked",
                title="after masked pre-training",
                steps=self.tuned,
                begins_from="masked",
            ),
            Stage(
                name="after_image",
                title="after pre-training on pictures",
                steps=self.tuned,
                begins_from="image",
            ),
        )


FULL = Size()
SHORT = Size(
    teacher=2,
    image=2,
    masked=2,
    tuned=2,
    train_clips=40,
    test_clips=40,
    model=("model.embed_dim=16", "model.depth=1", "model.d_state=2"),
)
"""Every path in seconds; its figures mean nothing."""
SIZES = {"full": FULL, "short": SHORT}


class Result(BaseModel):
    """What a finished stage says."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    stage: Stage
    seed: int
    metrics: Mapping[str, float]
    train_clips: int
    cpu_s: float
    """CPU seconds of the training steps, those of the teacher's forward pass among them."""
    losses: tuple[float, ...]
    """Mean training loss of ten equal parts of the steps."""


def run_tasks(folder: Path, size: Size, say: Callable[[str], None]) -> list[Result]:
    """Train every stage that has not finished, and return all results.

    Raises ConfigError when the directory holds a study of another size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for seed in range(SEEDS):
        for stage in size.stages():
            if seed >= stage.seeds:
                continue
            path = folder / f"{stage.name}-{seed}.json"
            if not path.exists():
                result = _train(stage, seed, folder, size)
                publish(path, result.model_dump_json().encode())
                say(f"{path.stem}: {_shown(result)}")
            result = Result.model_validate_json(path.read_text())
            if (result.stage, result.train_clips) != (stage, size.train_clips):
                raise ConfigError(f"{path}: belongs to another study; choose another directory")
            results.append(result)
    return results


def table(results: Sequence[Result]) -> list[str]:
    """Markdown: means over seeds with 95 % intervals, and the differences to a fresh start."""
    by_stage: dict[str, list[Result]] = {}
    for result in results:
        by_stage.setdefault(result.stage.name, []).append(result)
    fresh = [_score(result) for result in by_stage["plain"]]
    lines = [
        "| training | steps | seeds | score on test clips, % | minus fresh start, points | CPU s |",
        "|---|---|---|---|---|---|",
    ]
    for found in by_stage.values():
        stage, scores = found[0].stage, [_score(result) for result in found]
        is_compared = stage.data == "motion" and "top1" in found[0].metrics
        gains = [mine - base for mine, base in zip(scores, fresh, strict=False)]
        gain = estimate(gains) if is_compared and stage.name != "plain" else None
        what = "top-1" if "top1" in found[0].metrics else "similarity"
        mean = estimate(scores)
        assert mean is not None
        cells = (
            stage.title,
            str(stage.steps),
            str(len(found)),
            f"{what} {mean.percent()}",
            "" if gain is None else gain.percent(signed=True),
            f"{sum(result.cpu_s for result in found) / len(found):.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _score(result: Result) -> float:
    return result.metrics.get("top1", result.metrics.get("similarity", 0.0))


def _shown(result: Result) -> str:
    losses = " ".join(f"{loss:.2f}" for loss in result.losses)
    return f"{100 * _score(result):.1f} %, {result.cpu_s:.0f} s, losses {losses}"


def _train(stage: Stage, seed: int, folder: Path, size: Size) -> Result:
    config = _config(stage, seed, folder, size)
    train, test = _clips(stage.data, size)
    torch.manual_seed(seed)
    model = initial_model(config)
    task = build_task(config, _CPU)
    student = task.student(model).train()
    engine = plain_engine(config, student)
    schedule = Schedule(config.schedule, config.optim.lr, stage.steps)
    losses = torch.zeros(stage.steps)
    began = time.process_time()
    for step, batch in enumerate(islice(train.dealt(seed, _BATCH), stage.steps)):
        loss, _ = task(engine, batch)
        engine.backward(loss)
        grad_norm = float(engine.squared_grad_norm().sqrt())
        engine.step(schedule.lr(step), grad_norm)
        losses[step] = loss.detach()
    cpu_s = time.process_time() - began
    engine.train(False)
    metrics = task.evaluate(engine, test.in_order(100))
    save_model(folder / f"{stage.name}-{seed}.safetensors", _bare(student, config))
    curve = tuple(float(part.mean()) for part in losses.tensor_split(min(10, stage.steps)))
    return Result(
        stage=stage,
        seed=seed,
        metrics=metrics,
        train_clips=size.train_clips,
        cpu_s=round(cpu_s, 2),
        losses=curve,
    )


def _config(stage: Stage, seed: int, folder: Path, size: Size) -> RunConfig:
    own = [f"name={stage.name}", f"seed={seed}", *size.model, *stage.overrides]
    if stage.teacher is not None:
        own.append(f"task.teacher.path={folder / f'{stage.teacher}-0.safetensors'}")
    if stage.begins_from is not None:
        own.append(f"init_from={folder / f'{stage.begins_from}-{seed}.safetensors'}")
    # One epoch of the schedule stands for all steps, since it counts the warm-up in epochs.
    own += ["schedule.epochs=1", "schedule.warmup_epochs=0.1", f"batch.global_size={_BATCH}"]
    own.append("engine.precision=fp32")
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
