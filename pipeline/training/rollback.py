"""The rollbacks of a run: how far back one goes, which batches it leaves out, and that it holds.

The line in rollbacks.jsonl is the moment from which a rollback holds. Whatever is killed after it,
the next attempt deletes the checkpoints that were left behind and leaves the same batches out.
Whatever is killed before it, the next attempt meets the same spike and decides the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline import rundir
from pipeline.checkpoint import layout
from pipeline.checkpoint.load import newest_valid
from pipeline.errors import CheckpointError, UnstableError
from pipeline.rundir import LeftOutBatch, Rollback
from pipeline.training.config import StabilityConfig
from pipeline.training.distributed import on_main

logger = logging.getLogger(__name__)


class Rollbacks:
    """The rollbacks that a run has made, the same on every rank."""

    def __init__(self, config: StabilityConfig, run_dir: Path) -> None:
        """Read those of earlier attempts. Collective: call on every rank."""
        self.config = config
        self.made = on_main(lambda: rundir.read_rollbacks(run_dir))
        self._run_dir = run_dir

    @property
    def left_out(self) -> frozenset[int]:
        """The steps whose batches are not trained on."""
        return rundir.left_out(self.made)

    def targets(self, step: int) -> tuple[int, ...]:
        """Return the steps, newest first, to which a rollback decided at `step` may go.

        They depend on the configuration alone, not on where an attempt happened to stop and save.
        """
        if not self.config.rollback:
            return ()
        every = self.config.checkpoint_every_steps
        newest = step - step % every
        return (newest, newest - every) if newest else (0,)

    def is_target(self, step: int) -> bool:
        """Return whether a checkpoint must be saved at this step for later rollbacks."""
        return step in self.targets(step)

    def require_one_left(self, error: UnstableError) -> None:
        """Raise `error`, or one of its type that says more, unless it may be rolled back."""
        if not self.config.rollback:
            raise error
        if len(self.made) >= self.config.max_rollbacks:
            raise type(error)(
                f"{error}; all stability.max_rollbacks={self.config.max_rollbacks} rollbacks are "
                f"made, see {self._run_dir / rundir.ROLLBACKS_FILE}",
                error.steps,
            ) from error

    def begin(
        self, step: int, error: UnstableError, keys_of: Callable[[int], Sequence[str]]
    ) -> Path:
        """Decide a rollback, record it and return the checkpoint to load. Collective.

        Call this with no checkpoint in flight, in step `step`; `keys_of` returns the keys of the
        global batch of a step. Raises CheckpointError when none is intact.
        """
        path, rollback = on_main(lambda: self._begin(step, error, keys_of))
        self.made.append(rollback)
        logger.warning("rolling %s", rollback)
        return path

    def _begin(
        self, step: int, error: UnstableError, keys_of: Callable[[int], Sequence[str]]
    ) -> tuple[Path, Rollback]:
        first = min(error.steps)
        before = [s for s in range(first) if s not in self.left_out][-self.config.skip_before :]
        fault = [*(before if self.config.skip_before else ()), *range(first, step + 1)]
        path = self._checkpoint(step, before=fault[0])
        to_step = layout.step_of(path)
        rollback = Rollback(
            step=step,
            to_step=to_step,
            reason=str(error),
            batches=tuple(
                LeftOutBatch(step=each, keys=tuple(keys_of(each)))
                for each in fault
                if each >= to_step and each not in self.left_out
            ),
        )
        rundir.append_rollback(self._run_dir, rollback)
        delete_abandoned(self._run_dir)
        return path, rollback

    def _checkpoint(self, step: int, before: int) -> Path:
        """Return the newest intact target whose weights have not seen the step `before`.

        If earlier rollbacks have left out all that lies between, it is the oldest that is kept.
        """
        targets = self.targets(step)
        fitting = [target for target in targets if target <= before] or [targets[-1]]
        for target in fitting:
            path = self._run_dir / rundir.CHECKPOINTS / layout.checkpoint_name(target)
            try:
                layout.verify(path)
            except CheckpointError as error:
                logger.error("%s; rolling back further", error)
                continue
            return path
        raise CheckpointError(
            f"run {self._run_dir}: no intact checkpoint to roll back to (of steps "
            f"{', '.join(map(str, fitting))})"
        )


def newest_on_course(run_dir: Path) -> Path | None:
    """Return the newest intact checkpoint from which the run continues; None without any.

    It first ends the rollback in which the last attempt was killed, if it was. Raises
    CheckpointError when no checkpoint is intact or when rollbacks.jsonl lacks lines.
    """
    delete_abandoned(run_dir)
    path = newest_valid(run_dir / rundir.CHECKPOINTS)
    if path is None:
        return None
    known, listed = layout.read_state(path).rollbacks, len(rundir.read_rollbacks(run_dir))
    if listed < known:
        raise CheckpointError(
            f"{run_dir / rundir.ROLLBACKS_FILE} lists {listed} rollbacks, and checkpoint {path} "
            f"comes after {known}: put the file back (MLflow has a copy)"
        )
    return path


def delete_abandoned(run_dir: Path) -> None:
    """Delete the checkpoints that rollbacks have left behind; a second call changes nothing."""
    for number, rollback in enumerate(rundir.read_rollbacks(run_dir), 1):
        for path in layout.committed(run_dir / rundir.CHECKPOINTS):
            if layout.step_of(path) > rollback.to_step and not _knows(path, number):
                layout.delete(path)


def _knows(path: Path, rollbacks: int) -> bool:
    """Return whether a checkpoint was saved after that many rollbacks, or cannot be read."""
    try:
        return layout.read_state(path).rollbacks >= rollbacks
    except CheckpointError:
        return True  # the choice of the newest intact one reports it
