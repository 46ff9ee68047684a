"""The training loop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from pipeline.checkpoint.layout import RunState
from pipeline.checkpoint.load import read_full_state
from pipeline.checkpoint.save import CheckpointSaver
from pipeline.config import RunConfig
from pipeline.data.batch import Batch
from pipeline.data.loader import EvalLoader, TrainLoader
from pipeline.errors import UnstableError
from pipeline.health.pulse import Pulse
from pipeline.health.stopping import Stopper
from pipeline.health.straggler import StragglerWatch
from pipeline.inference.selection import is_test_split
from pipeline.open_data import data_digest
from pipeline.rundir import End, Phase, StopClass
from pipeline.training.distributed import World, any_rank, from_all_ranks, limit_collectives
from pipeline.training.engine import Engine
from pipeline.training.guard import NonFiniteGuard
from pipeline.training.layers import LayerStatistics
from pipeline.training.meters import Meters
from pipeline.training.progress import Progress, restore
from pipeline.training.recorder import Pace, Recorder
from pipeline.training.rollback import Rollbacks
from pipeline.training.schedule import Schedule
from pipeline.training.spikes import SpikeWatch
from pipeline.training.tasks.task import Task
from pipeline.training.verdict import reach_verdict

logger = logging.getLogger(__name__)


@dataclass
class Trainer:
    """The training loop, `fit`, with the objects that it uses. Every rank runs the same code."""

    config: RunConfig
    world: World
    engine: Engine
    task: Task
    train_loader: TrainLoader
    open_loader: Callable[[int, frozenset[int]], TrainLoader]
    """Opens a loader like `train_loader` at a position, without the batches that are left out."""
    eval_loader: EvalLoader
    schedule: Schedule
    guard: NonFiniteGuard
    spikes: SpikeWatch
    rollbacks: Rollbacks
    saver: CheckpointSaver
    stopper: Stopper
    pulse: Pulse
    recorder: Recorder
    progress: Progress
    steps_per_epoch: int
    accumulation: int

    def __post_init__(self) -> None:
        self._meters = Meters(self.world.device)
        self._layers = LayerStatistics(self.engine, self.world, self.config.log_layers_every_steps)
        self._stragglers = StragglerWatch(
            self.config.health.straggler_factor, self.world, self.pulse.host
        )
        self._attempt_started = time.monotonic()
        self._begin_pace()
        self._warming_up = True

    def fit(self) -> End:
        """Train to the end of the schedule or until any rank is asked to stop. Collective.

        In both cases a checkpoint is committed, and the returned end is the same on every rank.

        Raises UnstableError or SaveError on every rank. A DataError (too many unreadable samples)
        is raised only on the rank that met it; the other ranks then lose that rank and fail.
        """
        self.pulse.begin(self.progress.step, self.schedule.total_steps)
        if self.progress.step and self._evaluation_is_due() and not self._evaluate():
            return self._stop_early()
        if self.rollbacks.is_target(self.progress.step):
            self._save()
        while self.progress.step < self.schedule.total_steps:
            try:
                with self.pulse.timed_step():
                    stop = self._train_step()
            except UnstableError as error:
                self._roll_back(error)
                continue
            if self._warming_up and self.progress.step - 1 not in self.rollbacks.left_out:
                self._warm_up_is_over()
            if self._due(self.config.log_every_steps):
                self._log()
            if stop:
                return self._stop_early()
            if self._evaluation_is_due() and not self._evaluate():
                return self._stop_early()
            if self._save_is_due():
                self._save()
        self._save_and_commit()
        return End(StopClass.FINISHED, self._doubt())

    def _train_step(self) -> bool:
        """Do one optimizer step, and return whether any rank was asked to stop. Collective."""
        step = self.progress.step
        if step in self.rollbacks.left_out:
            return self._pass_over()
        self.engine.train()
        self._layers.begin(step + 1)
        losses = torch.zeros((), device=self.world.device)
        for _ in range(self.accumulation):
            with self._meters.span("data"):
                batch = next(self.train_loader)
            with self._meters.device_span("forward"):
                loss, report = self.task(self.engine, batch)
            self.engine.backward(loss)
            losses += loss.detach()
            self._meters.add(report)
            self.recorder.samples(step, batch.keys)
        verdict = reach_verdict(
            losses,
            self.engine.squared_grad_norm(),
            stop=self.stopper.requested or self.saver.failed,
            world=self.world,
        )
        grad_norm = self.engine.unscaled(verdict.grad_norm)
        overflow = self.engine.loss_scale.overflows(verdict.finite)
        if self.guard.rejects(step, verdict.finite, overflow=overflow):
            self.engine.discard_gradients()
        else:
            self.spikes.watch(step, verdict.loss / (self.world.size * self.accumulation))
            with self._layers.around_update():
                self.engine.step(self.schedule.lr(step), verdict.grad_norm)
            self._meters.add_grad_norm(grad_norm)
        self.engine.loss_scale.note(verdict.finite)
        self._count_step()
        return verdict.stop

    def _count_step(self) -> None:
        self.progress.step += 1
        self.progress.position += self.config.batch.global_size
        self._meters.count_step()

    def _pass_over(self) -> bool:
        """Count the step of a batch that a rollback has left out; the loader does not give it."""
        self._count_step()
        return False

    def _roll_back(self, error: UnstableError) -> None:
        """Return to a checkpoint before the batches at fault, and leave these out. Collective.

        Raises `error` if no rollback is asked for or left.
        """
        self.rollbacks.require_one_left(error)
        with self.pulse.during(Phase.SAVE):
            self.engine.discard_gradients()
            self.saver.finish()
            path = self.rollbacks.begin(self.progress.step, error, self.train_loader.keys_of)
            there = restore(self.engine, self.guard, self.spikes, path, *read_full_state(path))
            self.progress = replace(there, elapsed_s=self.progress.elapsed_s)
            self.recorder.rewind(there.step)
            self.train_loader.close()
            self.train_loader = self.open_loader(there.position, self.rollbacks.left_out)
        self._meters = Meters(self.world.device)
        self._begin_pace()
        self.pulse.begin(there.step, self.schedule.total_steps)

    def _warm_up_is_over(self) -> None:
        """Shorten the time-out of collectives: after the first step, a slow rank is a broken one.

        By then every rank has compiled, connected and allocated all it needs.
        """
        self._warming_up = False
        limit_collectives(self.config.engine.step_timeout_s)

    def _due(self, every_steps: int) -> bool:
        return self.progress.step % every_steps == 0

    def _evaluation_is_due(self) -> bool:
        every = max(1, round(self.config.eval.every_epochs * self.steps_per_epoch))
        due = self._due(every) or self.progress.step == self.schedule.total_steps
        return due and self.progress.evaluated_step != self.progress.step

    def _save_is_due(self) -> bool:
        step = self.progress.step
        is_best = self.config.checkpoint.keep_best and self.progress.best_step == step
        due = self._due(self.config.checkpoint.every_steps)
        return due or is_best or self.rollbacks.is_target(step)

    def _log(self) -> None:
        step = self.progress.step
        values = self._meters.flush()
        self._stragglers.compare(self._meters.own_time)
        values |= self.pulse.step_percentiles() | self.saver.timings
        values |= self.engine.learning_rates(self.schedule.lr(step - 1))
        values["epoch"] = step / self.steps_per_epoch
        values["skipped_steps"] = float(self.guard.skipped)
        if self.engine.loss_scale.is_on:
            values["loss_scale"] = self.engine.loss_scale.value
            values["loss_scale_skipped_steps"] = float(self.engine.loss_scale.skipped)
        if self.config.stability.rollback:
            values["rollbacks"] = float(len(self.rollbacks.made))
            values["left_out_steps"] = float(sum(s < step for s in self.rollbacks.left_out))
        self.recorder.record(step, "train", values, pace=self._pace())
        if layers := self._layers.read():
            self.recorder.record(step, "layers", layers)

    def _begin_pace(self) -> None:
        self._paced_from = self.progress.step, time.monotonic()

    def _pace(self) -> Pace:
        """Estimate the time left from the mean pace so far, evaluations and saves included.

        It counts from the beginning of the attempt or from the last rollback in it.
        """
        total = self.schedule.total_steps
        first_step, began = self._paced_from
        done = self.progress.step - first_step
        elapsed_s = time.monotonic() - began
        return Pace(total, (total - self.progress.step) * elapsed_s / done)

    def _evaluate(self) -> bool:
        """Evaluate, and return whether the evaluation was completed. Collective.

        It is cut short when any rank is asked to stop; the next attempt then begins with it.
        """
        began = time.monotonic()
        self.engine.train(False)
        averaged = self.engine.state.averaged_weights(self.config.eval.use_ema)
        with self.pulse.during(Phase.EVAL), averaged:
            metrics = self.task.evaluate(self.engine, self._evaluation_batches())
        if any_rank(self.stopper.requested):
            return False
        self.progress.note_evaluation(metrics, self.task.score, chooses=self._chooses_best())
        seconds = {"seconds": time.monotonic() - began}
        self.recorder.record(self.progress.step, "eval", self.progress.metrics | seconds)
        return True

    def _chooses_best(self) -> bool:
        """Return whether evaluations may choose the best checkpoint, which test data never do."""
        return not is_test_split(self.eval_loader.shards.manifest, self.config.data.val_split)

    def _evaluation_batches(self) -> Iterator[Batch]:
        """Yield the validation batches until any rank is asked to stop. Collective."""
        for batch in self.pulse.each(self.eval_loader):
            if any_rank(self.stopper.requested):
                return
            yield batch

    def _save(self) -> None:
        if self.progress.saved_step == self.progress.step:
            return
        with self.pulse.during(Phase.SAVE):
            self.recorder.sync()
            self.saver.save(self.engine.state.fragments(), self.state(), self.config.to_yaml())
        self.progress.saved_step = self.progress.step

    def _save_and_commit(self) -> None:
        self._save()
        with self.pulse.during(Phase.SAVE):
            self.saver.finish()

    def _doubt(self) -> str:
        """Return a warning about the result of a finished run, or an empty string."""
        loss = self.progress.metrics.get("loss", 0.0)
        if math.isfinite(loss):
            return ""
        doubt = f"the validation loss is {loss}: this model is of no use; lower optim.lr"
        logger.warning("finished, but %s", doubt)
        return doubt

    def _stop_early(self) -> End:
        end = self._why()
        logger.warning("stopping at step %d: %s", self.progress.step, end.reason)
        self._save_and_commit()
        self.recorder.note_end(end)
        return end

    def _why(self) -> End:
        """Return what stopped the run, the same on every rank. Collective."""
        asked = [end for end in from_all_ranks(self.stopper.end) if end is not None]
        return asked[0] if asked else End(StopClass.DISK_FULL, "a checkpoint failed")

    def state(self) -> RunState:
        """Return what a checkpoint of this moment records besides the tensors."""
        attempt_s = time.monotonic() - self._attempt_started
        return RunState(
            step=self.progress.step,
            position=self.progress.position,
            adam_steps=self.engine.state.adam_steps,
            world_size=self.world.size,
            zero_stage=self.engine.stage,
            shapes=self.engine.state.shapes,
            classes=self.train_loader.shards.classes,
            data_digest=data_digest(self.train_loader.shards, self.eval_loader.shards),
            teacher_digest=self.task.teacher_digest,
            skipped_steps=self.guard.skipped,
            not_finite=self.guard.in_a_row,
            loss_history=self.spikes.history,
            rollbacks=len(self.rollbacks.made),
            rollback_targets=self.rollbacks.targets(self.progress.step),
            loss_scale=self.engine.loss_scale.state,
            metrics=self.progress.metrics,
            evaluated_step=self.progress.evaluated_step,
            best_top1=self.progress.best_score,
            best_step=self.progress.best_step,
            elapsed_s=self.progress.elapsed_s + attempt_s,
        )
