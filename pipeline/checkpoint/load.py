"""Reading checkpoints, for any number of ranks at any ZeRO stage, or as plain weights."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from pipeline.checkpoint import layout
from pipeline.checkpoint.layout import RunState
from pipeline.errors import CheckpointError
from pipeline.training.zero_state import EMA_KEY

logger = logging.getLogger(__name__)

FullState = dict[str, dict[str, torch.Tensor]]
"""Parameter name -> state key (param, exp_avg, exp_avg_sq, and ema where an average is kept) ->
fp32 tensor of the parameter's full shape."""


def newest_valid(root: Path) -> Path | None:
    """Return the newest committed checkpoint whose files match their hashes and can be read.

    A corrupt checkpoint is logged, and the one before it is tried. Returns None when there is no
    checkpoint at all.
    Raises CheckpointError when all are corrupt, as a silent restart would discard the run.
    """
    candidates = layout.committed(root)
    for path in reversed(candidates):
        try:
            layout.verify(path)
            layout.read_state(path)
        except CheckpointError as error:
            logger.error("%s; falling back to the checkpoint before it", error)
            continue
        return path
    if candidates:
        raise CheckpointError(
            f"none of the {len(candidates)} checkpoints under {root} is intact; "
            "restore one from a copy, or remove the directory to start again"
        )
    return None


def read_full_state(path: Path, keys: tuple[str, ...] = ()) -> tuple[RunState, FullState]:
    """Assemble the shards of a committed checkpoint into whole tensors on the CPU.

    Args:
        keys: state keys to read; empty = all.
    Raises CheckpointError for an unreadable shard or for an element that no shard holds.
    """
    state = layout.read_state(path)
    _refuse_more_than_stored(path, state)
    flat: FullState = defaultdict(dict)
    filled: dict[tuple[str, str], int] = defaultdict(int)
    for shard in layout.shard_files(path):
        try:
            with safe_open(shard, framework="pt") as file:
                for entry in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                    key, name, start = entry.split("|")
                    if keys and key not in keys:
                        continue
                    part = file.get_tensor(entry)
                    if key not in flat[name]:
                        numel = torch.Size(state.shapes[name]).numel()
                        flat[name][key] = torch.empty(numel, dtype=part.dtype)
                    flat[name][key][int(start) : int(start) + part.numel()] = part
                    filled[name, key] += part.numel()
        # A fragment that does not lie inside its parameter raises RuntimeError.
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"checkpoint {path}: {shard.name} is unreadable: {error}"
            ) from error
    for name, shape in state.shapes.items():
        for key, tensor in flat[name].items():
            if filled[name, key] != tensor.numel():
                raise CheckpointError(f"checkpoint {path}: {key} of {name} is not complete")
            flat[name][key] = tensor.view(shape)
        if "param" not in flat[name]:
            raise CheckpointError(f"checkpoint {path}: holds nothing for parameter {name}")
    return state, dict(flat)


def read_weights(path: Path, *, raw: bool = False) -> dict[str, torch.Tensor]:
    """Verify a checkpoint and return its fp32 weights as a state_dict on the CPU.

    If the run kept a moving average of the weights, it is returned instead, unless `raw`.
    Raises CheckpointError for a damaged checkpoint or for weights that are not finite.
    """
    layout.verify(path)
    _, full = read_full_state(path, keys=("param",) if raw else ("param", EMA_KEY))
    weights = {name: tensors.get(EMA_KEY, tensors["param"]) for name, tensors in full.items()}
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"checkpoint {path}: {name} holds NaN or infinite numbers; take an earlier one"
            )
    return weights


def _refuse_more_than_stored(path: Path, state: RunState) -> None:
    """Raise CheckpointError if state.json names more numbers than the shards can hold.

    A damaged state.json could otherwise make this process allocate a terabyte.
    """
    stored = sum(shard.stat().st_size for shard in layout.shard_files(path))
    named = sum(math.prod(shape) for shape in state.shapes.values())
    sizes = [size for shape in state.shapes.values() for size in shape]
    if named * torch.float32.itemsize > stored or min(sizes, default=0) < 0:
        raise CheckpointError(
            f"checkpoint {path}: {layout.STATE_FILE} names {named:,} numbers, and the shards have "
            f"{stored:,} bytes"
        )
