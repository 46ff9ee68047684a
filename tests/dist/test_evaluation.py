"""An evaluation finds the same bits on any number of ranks; test data choose nothing."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from model import create_model, save_model
from pipeline.config import load_config
from pipeline.data.shards import open_shards
from pipeline.health.pulse import Pulse
from pipeline.health.stopping import Stopper
from pipeline.inference.evaluate import predictions
from pipeline.inference.evaluate_checkpoint import evaluate_weights
from pipeline.inference.loader import evaluation_loader
from pipeline.inference.results import read_results, write_results
from pipeline.inference.trained import open_trained
from pipeline.prepare import prepare_run
from pipeline.training.assemble import assemble
from pipeline.training.distributed import World
from tests.pipeline.data.conftest import write_shards
from tests.ranks import run_on_ranks

pytestmark = [pytest.mark.dist, pytest.mark.slow]

VIDEOS = 17  # not a multiple of ranks or batches
VIEWS = ["eval.clips=2", "eval.crops=3", "eval.batch_size=2", "data.workers=0"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lengths = {"train": [6] * 12, "val": [4 + number % 5 for number in range(VIDEOS)], "test": [6]}
    return write_shards(tmp_path_factory.mktemp("data") / "shards", lengths)


def evaluate_together(world: World, weights: Path, shards: Path, out: Path) -> None:
    results = evaluate_weights(weights, shards, VIEWS, world)
    if world.is_main:
        write_results(out / str(world.size), results)


def test_one_two_and_three_ranks_find_the_same_bits(shards: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "w.safetensors"
    save_model(weights, create_model("videomambapro-tiny-test", num_classes=3))
    alone = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    evaluate_together(alone, weights, shards, tmp_path)
    run_on_ranks(evaluate_together, 3, weights, shards, tmp_path)
    for name in ("evaluation.json", "videos.parquet"):
        assert (tmp_path / "3" / name).read_bytes() == (tmp_path / "1" / name).read_bytes(), name

    found = read_results(tmp_path / "1")
    assert found.evaluation.num_videos == len(set(found.keys)) == VIDEOS
    trained = open_trained(weights, VIEWS)
    both = [  # the shares of two ranks, one after the other
        part
        for rank in range(2)
        for part in predictions(
            trained.model.eval(),
            evaluation_loader(open_shards(shards, "val"), trained.config, rank, 2),
            trained.config.data,
            alone.device,
        )
    ]
    position, logits = (torch.cat([getattr(p, x) for p in both]) for x in ("position", "logits"))
    assert torch.equal(logits[position.argsort()], torch.from_numpy(found.logits))


def best_steps(world: World, shards: Path, root: Path) -> dict[str, tuple[int, int]]:
    """Split -> (step of the best, step of the last evaluation) after a short training on it."""
    found = {}
    for split in ("val", "test"):
        config = load_config(
            "demo",
            [
                f"name={split}",
                f"runs_dir={root}",
                f"data.train={shards}",
                f"data.val_split={split}",
                "model.preset=videomambapro-tiny-test",
                "model.num_classes=3",
                "batch.global_size=12",
                "schedule.max_steps=2",
                "eval.every_epochs=1",
                "data.workers=0",
                "optim.layer_decay=0.5",
                "tracking.enabled=false",
            ],
        )
        run_dir = prepare_run(config)
        with Stopper(config.stop, None) as stopper, ExitStack() as stack:
            trainer = assemble(config, run_dir, world, stopper, Pulse(world.rank), stack)
            trainer.fit()
            state = trainer.state()
        found[split] = (state.best_step, state.evaluated_step)
    return found


def test_only_a_validation_split_chooses_the_best_checkpoint(shards: Path, tmp_path: Path) -> None:
    (found,) = run_on_ranks(best_steps, 1, shards, tmp_path)
    assert found["val"][0] > 0
    assert found["test"][0] == -1
    assert found["val"][1] == found["test"][1] == 2
