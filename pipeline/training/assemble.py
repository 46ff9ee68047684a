"""Build a trainer from a configuration and restore it to where its run left off."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch.optim import AdamW

from model import VideoMamba, create_model
from model.convert import fit_model
from pipeline import rundir
from pipeline.checkpoint.layout import RunState
from pipeline.checkpoint.load import read_full_state
from pipeline.checkpoint.save import CheckpointSaver
from pipeline.checkpoint.source import locate, read_tensors
from pipeline.checkpoint.trained import checkpoint_config
from pipeline.config import RunConfig, config_difference, refusal
from pipeline.data.loader import TrainLoader, build_train_loader
from pipeline.data.shards import Shards
from pipeline.errors import CheckpointError
from pipeline.health.pulse import Pulse
from pipeline.health.stopping import Stopper
from pipeline.inference.loader import evaluation_loader
from pipeline.open_data import data_digest, open_data
from pipeline.tracking import DatasetUse
from pipeline.training import determinism, distributed
from pipeline.training.distributed import World
from pipeline.training.engine import Engine
from pipeline.training.guard import NonFiniteGuard
from pipeline.training.optim import build_adamw, parameter_groups
from pipeline.training.precision import allow_tf32
from pipeline.training.progress import Progress, restore
from pipeline.training.recorder import Recorder
from pipeline.training.rollback import Rollbacks, newest_on_course
from pipeline.training.schedule import Schedule
from pipeline.training.spikes import SpikeWatch
from pipeline.training.startup import do_without_compiler, step_without_compiler
from pipeline.training.tasks.build import build_task
from pipeline.training.tasks.task import Task
from pipeline.training.trainer import Trainer

logger = logging.getLogger(__name__)


def assemble(
    config: RunConfig,
    run_dir: Path,
    world: World,
    stopper: Stopper,
    pulse: Pulse,
    stack: ExitStack,
) -> Trainer:
    """Build a run's trainer, resumed from the newest intact checkpoint if there is one.

    Collective: call on every rank. Everything that needs closing is registered on `stack`.
    Raises ConfigError, DataError or CheckpointError, the same on every rank.
    """
    determinism.configure(
        config.seed, deterministic=config.deterministic, threads=config.launch.threads_per_rank
    )
    train_shards, val_shards = open_data(config)
    micro_batch, accumulation = config.batch_split(world.size)
    checkpoint = distributed.on_main(lambda: newest_on_course(run_dir))
    # A resumed run must not need `init_from`: those weights may be gone by now.
    model = initial_model(config) if checkpoint is None else create_model(config.model)
    task = build_task(config, world.device)
    model = task.student(model)
    engine = build_engine(config, model, world, micro_batch, accumulation)
    saver = CheckpointSaver(run_dir / rundir.CHECKPOINTS, config.checkpoint, world)
    guard, spikes = NonFiniteGuard(config.guard), SpikeWatch(config.stability)
    progress = Progress()
    if checkpoint is not None:
        digest = data_digest(train_shards, val_shards)
        progress = resume(config, engine, task, guard, spikes, checkpoint, digest)

    def open_loader(position: int, left_out: frozenset[int]) -> TrainLoader:
        loader = build_train_loader(
            train_shards,
            config.data,
            img_size=config.model.img_size,
            num_frames=config.model.num_frames,
            seed=config.seed,
            global_batch=config.batch.global_size,
            micro_batch=micro_batch,
            rank=world.rank,
            world=world.size,
            start=position,
            left_out=left_out,
            labelled=config.task.needs_labels,
        )
        stack.callback(loader.close)
        return loader

    rollbacks = Rollbacks(config.stability, run_dir)
    train_loader = open_loader(progress.position, rollbacks.left_out)
    steps_per_epoch = train_loader.batches.batches_per_epoch
    datasets = [("training", train_shards), ("validation", val_shards)]
    recorder = Recorder(
        config,
        run_dir,
        world,
        progress.step,
        [_dataset_use(context, shards) for context, shards in datasets],
    )
    stack.push(recorder.close)
    return Trainer(
        config=config,
        world=world,
        engine=engine,
        task=task,
        train_loader=train_loader,
        open_loader=open_loader,
        eval_loader=evaluation_loader(val_shards, config, world.rank, world.size),
        schedule=Schedule(config.schedule, config.optim.lr, steps_per_epoch),
        guard=guard,
        spikes=spikes,
        rollbacks=rollbacks,
        saver=saver,
        stopper=stopper,
        pulse=pulse,
        recorder=recorder,
        progress=progress,
        steps_per_epoch=steps_per_epoch,
        accumulation=accumulation,
    )


def _dataset_use(context: str, shards: Shards) -> DatasetUse:
    # The address of a bucket may contain a user name and a key, which MLflow must not store.
    parts = urlsplit(shards.location)
    address = shards.location
    if parts.scheme and parts.netloc:
        address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    name = f"{shards.manifest.dataset} {Path(parts.path).name}"
    return DatasetUse(context, name, shards.content_digest, address)


def build_engine(
    config: RunConfig, model: VideoMamba, world: World, micro_batch: int, accumulation: int
) -> Engine:
    """Wrap `model` and its AdamW in an engine as `config` says. Collective: call on every rank."""
    allow_tf32(config.engine.tf32, world.device)
    if not config.engine.compile:
        do_without_compiler()
    optimizer = build_optimizer(config, model, world.device)
    if not config.engine.compile:
        step_without_compiler(optimizer)
    return Engine(
        model,
        optimizer,
        config.engine,
        world=world,
        micro_batch=micro_batch,
        accumulation=accumulation,
        clip_grad=config.optim.clip_grad,
        ema_decay=config.ema.decay,
    )


def build_optimizer(config: RunConfig, model: VideoMamba, device: torch.device) -> AdamW:
    groups = parameter_groups(
        model.named_parameters(),
        config.optim,
        no_weight_decay=model.no_weight_decay(),
        depth=config.model.depth,
    )
    return build_adamw(groups, config.optim, device)


def initial_model(config: RunConfig) -> VideoMamba:
    """Build a model with fresh weights, or with those of `init_from` fitted to its shape.

    Collective: call on every rank. Raises WeightsError or CheckpointError.
    """
    source = config.init_from
    if source is None:
        return create_model(config.model)
    # Rank 0 chooses for all ranks: if `source` is still training, its newest checkpoint may
    # change between two looks.
    weights = distributed.on_main(lambda: locate(source))
    model, report = fit_model(read_tensors(weights), config.model, weights)
    logger.info("weights of %s:\n%s", weights, report)
    return model


def resume(
    config: RunConfig,
    engine: Engine,
    task: Task,
    guard: NonFiniteGuard,
    spikes: SpikeWatch,
    path: Path,
    digest: str,
) -> Progress:
    """Load a checkpoint of this run and return its progress. Collective.

    Args:
        path: the checkpoint, the same on every rank.
        digest: digest of the run's data, from `data_digest`.
    Raises CheckpointError when the checkpoint belongs to another run.
    """
    state, tensors = read_full_state(path)
    check_same_run(state, config, path, digest)
    if state.teacher_digest != task.teacher_digest:
        raise CheckpointError(
            f"checkpoint {path} was trained with another teacher (digest "
            f"{state.teacher_digest[:12]}, now {task.teacher_digest[:12]}): give task.teacher.path "
            "the same weights, or choose another name=..."
        )
    logger.warning("resuming from %s", path)
    return restore(engine, guard, spikes, path, state, tensors)


def check_same_run(state: RunState, config: RunConfig, path: Path, digest: str) -> None:
    """Raise CheckpointError when the checkpoint has other data or another configuration."""
    if state.data_digest != digest:
        raise CheckpointError(
            f"checkpoint {path} was trained on other data (digest {state.data_digest[:12]}, "
            f"now {digest[:12]}): restore the shards, or start a new run with init_from={path}"
        )
    if difference := config_difference(checkpoint_config(path), config):
        raise CheckpointError(
            f"checkpoint {path} belongs to another configuration {refusal(difference)}"
        )
