"""Shards to batches: exact order, decoding, augmentation."""

from pipeline.data.batch import Batch, normalize
from pipeline.data.config import DataConfig
from pipeline.data.errors import DataError
from pipeline.data.loader import EvalLoader, TrainLoader, build_eval_loader, build_train_loader
from pipeline.data.mix import Mix, draw_mix, mix_clips, mix_targets
from pipeline.data.randomness import sample_rng
from pipeline.data.shards import Shards, open_shards

__all__ = [
    "Batch",
    "DataConfig",
    "DataError",
    "EvalLoader",
    "Mix",
    "Shards",
    "TrainLoader",
    "build_eval_loader",
    "build_train_loader",
    "draw_mix",
    "mix_clips",
    "mix_targets",
    "normalize",
    "open_shards",
    "sample_rng",
]
