"""Shards to batches: exact order, decoding, augmentation."""

from pipeline.data.batch import Batch, normalize
from pipeline.data.config import DataConfig
from pipeline.data.errors import DataError
from pipeline.data.loader import EvalLoader, TrainLoader, build_eval_loader, build_train_loader
from pipeline.data.randomness import sample_rng
from pipeline.data.shards import Shards, open_shards

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
    "sample_rng",
]
