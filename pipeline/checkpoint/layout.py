"""The layout of a checkpoint directory, and the check that it is complete and unaltered.

checkpoints/step-00001234/
  shard-00000-of-00002.safetensors   one rank's fragments, tensors `<state key>|<parameter>|<start>`
  shard-00000-of-00002.json          its size and sha256, written when the shard is durable
  state.json                         `RunState`
  config.yaml                        the resolved configuration
  COMMITTED                          sizes and hashes of all the above, written last
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, ValidationError

from model.invalid import first_problem
from pipeline.errors import CheckpointError
from pipeline.rundir import paths
from pipeline.rundir.paths import MARKER as MARKER
from pipeline.rundir.paths import checkpoint_name as checkpoint_name
from pipeline.rundir.paths import committed as committed
from pipeline.rundir.records import Number, Record

STATE_FILE = "state.json"
CONFIG_FILE = "config.yaml"


class LossScaleState(Record):
    """State of the fp16 loss scale that a resumed run needs."""

    value: float
    good_steps: int
    overflows: int = 0
    """Steps skipped so far because the scale was too high."""


class LossHistory(Record):
    """What the spike guard has seen, see `pipeline.training.spikes`."""

    losses: tuple[Number, ...] = ()
    """The newest losses that were no spikes, oldest first."""
    spikes: tuple[int, ...] = ()
    """The steps of the row of spikes that has not ended."""


class RunState(Record):
    """Everything besides tensors that a run needs to resume as if it had never stopped.

    There is no RNG state, because every random draw is a pure function of the seed and its
    position. The configuration is in config.yaml, next to this file; the digest of it that older
    states hold is not read.
    """

    version: int = 2
    step: int
    """Optimizer steps as the schedule counts them, skipped ones included."""
    position: int
    """Training samples consumed since the start of the run, over all ranks."""
    adam_steps: int
    world_size: int
    zero_stage: int
    shapes: dict[str, tuple[int, ...]]
    """Parameter name -> full shape."""
    classes: tuple[str, ...]
    """Class names, in the order of the rows of the classification head."""
    data_digest: str
    """Digest of the training and validation samples, see `pipeline.open_data`."""
    teacher_digest: str = ""
    """Digest of the frozen teacher; empty for a task without one."""
    skipped_steps: int = 0
    not_finite: tuple[int, ...] = ()
    """Steps of the row of discarded steps that has not ended."""
    loss_history: LossHistory = LossHistory()
    rollbacks: int = 0
    """Rollbacks that the run had made; rollbacks.jsonl lists them."""
    rollback_targets: tuple[int, ...] = ()
    """Steps of the checkpoints that the next rollback may need, which are kept."""
    loss_scale: LossScaleState | None = None
    """Loss scale; None unless the precision is fp16."""
    metrics: dict[str, Number] = Field(default_factory=dict)
    """Metrics of the newest evaluation."""
    evaluated_step: int = -1
    """Step of the newest evaluation; a resumed run does an evaluation that is due and missing."""
    best_top1: Number = -1.0
    """Highest validation score so far: top-1 in [0, 1], or the similarity of masked pre-training in
    [-1, 1]."""
    best_step: int = -1
    """Step whose weights gave it; the earliest one if several did."""
    elapsed_s: Number = 0.0
    """Training time of all attempts so far, in seconds."""


class FileRecord(Record):
    """Size and hash of a committed file."""

    bytes: int
    sha256: str


class Marker(Record):
    """The content of `COMMITTED`."""

    files: dict[str, FileRecord] = Field(min_length=1)


def shard_name(rank: int, world_size: int) -> str:
    return f"shard-{rank:05d}-of-{world_size:05d}"


def step_of(path: Path) -> int:
    step = paths.step_of(path)
    if step is None:
        raise CheckpointError(f"{path}: not a checkpoint directory (expected step-<8 digits>)")
    return step


def verify(path: Path) -> None:
    """Compare every file of a checkpoint with its marker.

    Raises CheckpointError, which names the first file that is missing, short or altered.
    """
    for name, expected in _marker(path).files.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"checkpoint {path}: {name} is missing")
        if file.stat().st_size != expected.bytes:
            raise CheckpointError(
                f"checkpoint {path}: {name} has {file.stat().st_size} bytes, "
                f"{expected.bytes} were committed"
            )
        if file_sha256(file) != expected.sha256:
            raise CheckpointError(f"checkpoint {path}: {name} does not match its committed sha256")


def read_state(path: Path) -> RunState:
    """Read the `RunState` of a committed checkpoint.

    Raises CheckpointError when the marker is missing or the state cannot be read.
    """
    _marker(path)
    try:
        return RunState.model_validate_json((path / STATE_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise CheckpointError(
            f"checkpoint {path}: {STATE_FILE} cannot be read: {_reason(error)}"
        ) from error


def shard_files(path: Path) -> Iterator[Path]:
    return iter(sorted(path.glob("shard-*.safetensors")))


def delete(path: Path) -> None:
    """Delete a checkpoint, its marker first, so that a partly deleted one is never trusted."""
    (path / MARKER).unlink(missing_ok=True)
    shutil.rmtree(path)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _marker(path: Path) -> Marker:
    try:
        return Marker.model_validate_json((path / MARKER).read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"checkpoint {path}: no {MARKER} marker: it does not exist or was never finished"
        ) from error
    except (OSError, ValidationError) as error:
        raise CheckpointError(
            f"checkpoint {path}: {MARKER} cannot be read: {_reason(error)}"
        ) from error


def _reason(error: OSError | ValidationError) -> str:
    """Return the reason as one line."""
    return str(error) if isinstance(error, OSError) else first_problem(error)
