"""Evaluation of weights outside training, on one rank or several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.config import RunConfig
from pipeline.data.shards import Shards, open_shards
from pipeline.errors import ConfigError
from pipeline.inference.evaluate import EvalResult, Predictions, predictions, summarize
from pipeline.inference.loader import evaluation_loader
from pipeline.inference.results import Results, Setting, Views, results_of
from pipeline.inference.selection import is_test_split
from pipeline.inference.trained import Trained, open_trained
from pipeline.training.distributed import World, from_all_ranks
from pipeline.training.precision import AUTOCAST, resolve_precision


def evaluate_checkpoint(path: Path, data: Path, overrides: Sequence[str] = ()) -> EvalResult:
    """Evaluate weights on the validation split of `data`, in this process.

    `path` is what `pipeline.checkpoint.source` accepts. Overrides can set any field, such as
    `data.val_split=test`, `eval.clips=4`, `eval.shuffle_frames=true` or `eval.use_ema=false`.
    Raises CheckpointError, WeightsError, ConfigError or DataError.
    """
    return summarize(evaluate_weights(path, data, overrides).outcomes)


def evaluate_weights(
    path: Path, data: Path, overrides: Sequence[str] = (), world: World | None = None
) -> Results:
    """Evaluate as `evaluate_checkpoint` does, with every figure and prediction.

    Collective: call on every rank of `world`; None = this process alone. All ranks return the same
    results, which do not depend on the number of ranks.
    """
    trained = open_trained(path, overrides)
    config = trained.config
    shards = open_shards(data, config.data.val_split)
    _check_classes(trained, shards)
    if world is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        world = World(rank=0, size=1, local_rank=0, device=device)
    model = trained.model.to(world.device).eval()
    loader = evaluation_loader(shards, config, world.rank, world.size)
    precision = resolve_precision(config.engine.precision, world.device)
    dtype = AUTOCAST.get(precision)
    with torch.autocast(world.device.type, dtype, enabled=dtype is not None):
        mine = list(predictions(model, loader, config.data, world.device))
    gathered = _in_order(from_all_ranks(mine))
    unreadable = sorted(key for keys in from_all_ranks(list(loader.bad)) for key in keys)
    setting = Setting(
        weights=str(trained.source),
        data=shards.location,
        split=config.data.val_split,
        is_test=is_test_split(shards.manifest, config.data.val_split),
        data_digest=shards.content_digest,
        views=_views(config),
        precision=precision,
        classes=shards.classes,
    )
    keys = tuple(sample.key for sample in shards.samples(gathered.position.tolist()))
    return results_of(setting, gathered, keys, tuple(unreadable))


def _in_order(parts: list[list[Predictions]]) -> Predictions:
    """Join the predictions of all ranks, in the order of the shards."""
    joined = Predictions(*map(torch.cat, zip(*(p for part in parts for p in part), strict=True)))
    order = joined.position.argsort()
    return Predictions(*(column[order] for column in joined))


def _views(config: RunConfig) -> Views:
    return Views(
        clips=config.eval.clips,
        crops=config.eval.crops,
        sampling=config.data.sampling,
        stride=config.data.stride,
        num_frames=config.model.num_frames,
        img_size=config.model.img_size,
        shuffle_frames=config.eval.shuffle_frames,
        seed=config.seed,
    )


def _check_classes(trained: Trained, shards: Shards) -> None:
    checkpoint, learned, present = trained.source, trained.classes, shards.classes
    known = trained.config.model.num_classes
    if known != len(present):
        raise ConfigError(
            f"{checkpoint} knows {known} classes, {shards.location} has {len(present)}: "
            "it was trained on other data"
        )
    if not learned:
        return
    for number, (ours, theirs) in enumerate(zip(learned, present, strict=True)):
        if ours != theirs:
            raise ConfigError(
                f"{checkpoint} knows class {number} as '{ours}', {shards.location} as '{theirs}': "
                "evaluate it on shards with the classes, in the order, that it was trained on"
            )
