"""Recipe values of `auto`, which are computed from the data set before a run starts.

The stored config.yaml holds the computed numbers and never `auto`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pipeline.errors import ConfigError

AUTO = "auto"

# The global batch is chosen so that an epoch has about this many steps, within the bounds below.
_STEPS_PER_EPOCH = 16
_BATCH = (4, 64)
# The epochs are chosen to give about this many optimizer steps, within the bounds below.
_STEPS = 2000
_EPOCHS = (10, 100)
_WARMUP_SHARE = 0.1
_EVALUATIONS = 20


class DataFacts(NamedTuple):
    """Facts about the shards from which values follow."""

    classes: int
    clips: int
    """Number of clips in the training split."""


def _global_size(facts: DataFacts, _: Mapping[str, Any]) -> int:
    """Return a power of two, so that 2, 4 or 8 devices can share the batch."""
    low, high = _BATCH
    wanted = min(max(facts.clips // _STEPS_PER_EPOCH, low), high, facts.clips)
    return 1 << (wanted.bit_length() - 1)


def _epochs(facts: DataFacts, settled: Mapping[str, Any]) -> int:
    low, high = _EPOCHS
    steps_per_epoch = max(1, facts.clips // int(settled["batch.global_size"]))
    return min(max(round(_STEPS / steps_per_epoch), low), high)


# The order matters: later rules use the values of earlier ones.
_RULES: dict[str, Callable[[DataFacts, Mapping[str, Any]], int | float]] = {
    "model.num_classes": lambda facts, _: facts.classes,
    "batch.global_size": _global_size,
    "schedule.epochs": _epochs,
    "schedule.warmup_epochs": lambda _, settled: settled["schedule.epochs"] * _WARMUP_SHARE,
    "eval.every_epochs": lambda _, settled: max(1, settled["schedule.epochs"] // _EVALUATIONS),
}


def settle(raw: Mapping[str, Any], facts: Callable[[], DataFacts]) -> dict[str, Any]:
    """Return a tree as read from YAML with a number in place of each `auto`.

    `facts` is called only if the tree has an `auto`.
    Raises ConfigError when a rule needs a value that is missing or not a number.
    """
    if not any(_at(raw, key) == AUTO for key in _RULES):
        return dict(raw)
    known = facts()
    settled = {key: _at(raw, key) for key in _RULES}
    tree = dict(raw)
    for key, rule in _RULES.items():
        if settled[key] != AUTO:
            continue
        try:
            settled[key] = rule(known, settled)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{key}=auto follows from values that are missing or not numbers: set it"
            ) from error
        section, leaf = key.split(".")
        tree[section] = dict(tree[section]) | {leaf: settled[key]}
    return tree


def _at(raw: Mapping[str, Any], key: str) -> Any:
    section, leaf = key.split(".")
    values = raw.get(section)
    return values.get(leaf) if isinstance(values, Mapping) else None
