"""Shards to batches: exact order, decoding, augmentation.

Names resolve on first use, so that `pipeline.data.config` can be imported without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.data.batch import Batch, normalize
    from pipeline.data.config import DataConfig
    from pipeline.data.errors import DataError
    from pipeline.data.loader import (
        EvalLoader,
        TrainLoader,
        build_eval_loader,
        build_train_loader,
    )
    from pipeline.data.shards import Shards, open_shards

_HOME = {
    "Batch": "pipeline.data.batch",
    "normalize": "pipeline.data.batch",
    "DataConfig": "pipeline.data.config",
    "DataError": "pipeline.data.errors",
    "EvalLoader": "pipeline.data.loader",
    "TrainLoader": "pipeline.data.loader",
    "build_eval_loader": "pipeline.data.loader",
    "build_train_loader": "pipeline.data.loader",
    "Shards": "pipeline.data.shards",
    "open_shards": "pipeline.data.shards",
}

__all__ = [
    "Batch",
    "DataConfig",
    "DataError",
    "EvalLoader",
    "Shards",
    "TrainLoader",
    "build_eval_loader",
    "build_train_loader",
    "normalize",
    "open_shards",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
