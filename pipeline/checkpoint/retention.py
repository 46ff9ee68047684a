"""Retention of checkpoints: the newest, the best, and every n-th are kept."""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline.checkpoint import layout
from pipeline.checkpoint.config import CheckpointConfig
from pipeline.checkpoint.layout import RunState

logger = logging.getLogger(__name__)


def prune(root: Path, config: CheckpointConfig, newest: RunState) -> list[Path]:
    """Delete what `config` does not keep, now that `newest` is committed, and return the deleted.

    An OSError is logged, not raised, because the new checkpoint is valid all the same.
    """
    deleted = []
    try:
        for path in superseded(layout.committed(root), config, newest):
            layout.delete(path)
            deleted.append(path)
    except OSError as error:
        logger.warning("an old checkpoint under %s cannot be deleted: %s", root, error)
    return deleted


def superseded(present: list[Path], config: CheckpointConfig, newest: RunState) -> list[Path]:
    """Return the committed checkpoints that `config` does not keep, oldest first."""
    steps = {path: layout.step_of(path) for path in present}
    # A checkpoint later than `newest` is corrupt, since the run would have resumed from it.
    sound = [path for path in present if steps[path] <= newest.step]
    kept = set(sound[-config.keep_last :])
    kept |= {path for path in sound if steps[path] in newest.rollback_targets}
    if config.keep_every_steps:
        kept |= {path for path in sound if steps[path] % config.keep_every_steps == 0}
    if config.keep_best:
        kept |= {path for path in sound if steps[path] == newest.best_step}
    return [path for path in present if path not in kept]
