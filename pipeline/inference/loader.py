"""The loader of an evaluation's samples, in the views that the configuration asks for."""

from __future__ import annotations

from pipeline.config import RunConfig
from pipeline.data.loader import EvalLoader, build_eval_loader
from pipeline.data.shards import Shards


def evaluation_loader(
    shards: Shards, config: RunConfig, rank: int = 0, world: int = 1
) -> EvalLoader:
    """Build the loader of this rank's samples, in the views that `config.eval` asks for."""
    return build_eval_loader(
        shards,
        config.data,
        img_size=config.model.img_size,
        num_frames=config.model.num_frames,
        batch_size=config.eval.batch_size,
        rank=rank,
        world=world,
        clips=config.eval.clips,
        crops=config.eval.crops,
        shuffle_frames=config.eval.shuffle_frames,
        seed=config.seed,
        labelled=config.task.needs_labels,
    )
