"""Weights by a path, for every command and field that takes some.

The path is a file of weights (exported, converted or released), an exported folder, a checkpoint,
or a run directory.
`RUN@best` is the run's checkpoint with the highest validation accuracy; `RUN@last`, or `RUN` alone,
is its newest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor

from model.config import ModelConfig
from model.containers import FOLDER_WEIGHTS, read_container
from model.convert import check_fit
from pipeline import rundir
from pipeline.checkpoint import layout
from pipeline.checkpoint.load import newest_valid, read_weights
from pipeline.errors import CheckpointError

_ZERO_STATE = "mp_rank_00_model_states.pt"


def locate(path: Path) -> Path:
    """Return the weights file or the committed checkpoint that `path` stands for.

    Raises CheckpointError when there is none.
    """
    if path.is_file() or (path / layout.MARKER).is_file():
        return path
    if (path / FOLDER_WEIGHTS).is_file():
        return path / FOLDER_WEIGHTS
    run, which = split_choice(path)
    if (run / rundir.CHECKPOINTS).is_dir():
        newest = newest_valid(run / rundir.CHECKPOINTS)
        if newest is not None:
            return newest if which == "last" else _best(run, newest)
    raise CheckpointError(f"{path}: {_why_not(run)}")


def split_choice(path: Path) -> tuple[Path, Literal["best", "last"]]:
    """Split `RUN@best` into the run and its choice of checkpoint; an existing path has none."""
    if not path.exists():
        for which in ("best", "last"):
            if path.name.endswith(f"@{which}"):
                return path.with_name(path.name.removesuffix(f"@{which}") or "."), which
    return path, "last"


def read_tensors(source: Path, *, raw: bool = False) -> dict[str, Tensor]:
    """Read what `locate` found: a state_dict on the CPU, by bare key.

    A checkpoint gives the moving average of the weights if the run kept one, unless `raw`.
    Raises WeightsError for a file, CheckpointError for a checkpoint that cannot be used.
    """
    return read_container(source).tensors if source.is_file() else read_weights(source, raw=raw)


def check_start_weights(path: Path, config: ModelConfig) -> None:
    """Raise the error that a run with `init_from=path` would raise, before it is started.

    Raises CheckpointError or WeightsError.
    """
    source = locate(path)
    check_fit(read_tensors(source), config, source)


def _best(run: Path, newest: Path) -> Path:
    step = layout.read_state(newest).best_step
    if step < 0:
        raise CheckpointError(
            f"{run}@best: no evaluation has chosen a best checkpoint yet (a split called test "
            f"never does); take {run}@last"
        )
    best = run / rundir.CHECKPOINTS / layout.checkpoint_name(step)
    if not (best / layout.MARKER).is_file():
        raise CheckpointError(
            f"{run}@best: the checkpoint of step {step} was the best and is not there "
            f"(checkpoint.keep_best keeps it); take {run}@last"
        )
    return best


def _why_not(path: Path) -> str:
    if not path.exists():
        return "no such file or directory; give a file of weights, a checkpoint or a run"
    if (path / _ZERO_STATE).is_file():
        return f"a checkpoint of DeepSpeed's own; give its file {_ZERO_STATE}"
    return "neither a committed checkpoint nor a run that has one"
