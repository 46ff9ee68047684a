"""What a run has left behind, read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline import rundir
from pipeline.checkpoint import layout
from pipeline.checkpoint.layout import RunState
from pipeline.config import RunConfig, read_config
from pipeline.data.errors import DataError
from pipeline.data.shards import Shards, open_shards
from pipeline.errors import CheckpointError, ConfigError
from pipeline.rundir import Attempt, Start

_PLACES = ("data.train", "data.val")


class Checkpoint(NamedTuple):
    """A committed checkpoint whose files are those of its marker."""

    path: Path
    state: RunState
    config: RunConfig


@dataclass(frozen=True)
class Evidence:
    """The files of a run that was found at rest, with at least one committed checkpoint."""

    run_dir: Path
    config: RunConfig
    """The configuration of the newest checkpoint, with the places of the data that were given."""
    stored: RunConfig
    """The configuration of the run directory."""
    checkpoints: list[Checkpoint]
    """Whole checkpoints, oldest first."""
    damaged: list[str]
    """What is wrong with the other ones that have a marker."""
    starts: list[Start]
    attempts: list[Attempt]
    left_out: frozenset[int]
    """Steps whose batches rollbacks have left out, see rollbacks.jsonl."""
    train: Shards | None
    val: Shards | None
    missing_data: str
    """Why the shards cannot be opened; empty when they can."""

    @property
    def newest(self) -> Checkpoint:
        return self.checkpoints[-1]

    @property
    def steps(self) -> int:
        """Committed optimizer steps."""
        return self.newest.state.step


def gather(run_dir: Path, places: Sequence[str] = ()) -> Evidence:
    """Read the files of a run.

    Args:
        places: `data.train=DIR` and `data.val=DIR`, where the shards lie today.
    Raises ConfigError for a run that trains at the moment, that cannot be read or that has no
    intact checkpoint, and for other overrides.
    """
    stored = read_config(run_dir)
    if rundir.is_active(run_dir):
        raise ConfigError(f"{run_dir}: is training at the moment; audit it once it has stopped")
    checkpoints, damaged = [], []
    for path in layout.committed(run_dir / rundir.CHECKPOINTS):
        try:
            layout.verify(path)
            checkpoints.append(Checkpoint(path, layout.read_state(path), read_config(path)))
        except CheckpointError as error:
            damaged.append(str(error))
    if not checkpoints:
        what = f"none of its checkpoints is intact ({damaged[0]})" if damaged else "no checkpoint"
        raise ConfigError(f"{run_dir}: {what}, so no step of it is committed")
    config = _moved(checkpoints[-1].config, places)
    train = val = None
    missing_data = ""
    try:
        train = open_shards(config.data.train, config.data.train_split)
        val = open_shards(config.data.val_location, config.data.val_split)
    except DataError as error:
        missing_data = f"{error}; give the place of the shards: data.train=DIR"
    return Evidence(
        run_dir=run_dir,
        config=config,
        stored=stored,
        checkpoints=checkpoints,
        damaged=damaged,
        starts=rundir.read_starts(run_dir),
        attempts=rundir.read_attempts(run_dir),
        left_out=rundir.left_out(rundir.read_rollbacks(run_dir)),
        train=train,
        val=val,
        missing_data=missing_data,
    )


def _moved(config: RunConfig, places: Sequence[str]) -> RunConfig:
    given = {}
    for text in places:
        name, equals, value = text.partition("=")
        if name not in _PLACES or not equals or not value:
            raise ConfigError(
                f"{text!r}: an audit takes the configuration of the run; only {_PLACES[0]}=DIR and "
                f"{_PLACES[1]}=DIR may be given, for shards that have moved"
            )
        given[name.removeprefix("data.")] = value
    return config.model_copy(update={"data": config.data.model_copy(update=given)})
