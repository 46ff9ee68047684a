"""Opening the shards of a run, with checks that a command makes before any rank starts.

This is a module apart from `assemble`, so that a command that only submits need not import what
training needs.
"""

from __future__ import annotations

import hashlib

from pipeline.config import RunConfig
from pipeline.data.shards import Shards, open_shards
from pipeline.errors import ConfigError


def open_data(config: RunConfig) -> tuple[Shards, Shards]:
    """Open the training and validation shards and check that they fit the model.

    Raises DataError when a directory is not a shard directory. Raises ConfigError when the classes
    differ, or when the training split does not fill a batch.
    """
    train = open_shards(config.data.train, config.data.train_split)
    val = open_shards(config.data.val_location, config.data.val_split)
    for shards in (train, val) if config.task.needs_labels else ():
        if len(shards.classes) != config.model.num_classes:
            raise ConfigError(
                f"model.num_classes={config.model.num_classes}, but {shards.location} has "
                f"{len(shards.classes)} classes: set model.num_classes={len(shards.classes)}"
            )
    if train.classes != val.classes:
        raise ConfigError(
            f"{train.location} and {val.location} number their classes differently: shard both "
            "splits into one directory"
        )
    if len(train) < config.batch.global_size:
        raise ConfigError(
            f"batch.global_size={config.batch.global_size}, but split '{config.data.train_split}' "
            f"of {train.location} has {len(train)} samples: set it to {len(train)} or less"
        )
    return train, val


def data_digest(train: Shards, val: Shards) -> str:
    """Return the sha256 of the run's data, which must be the same when the run is resumed."""
    return hashlib.sha256(f"{train.content_digest} {val.content_digest}".encode()).hexdigest()
