"""What `vmp demo` refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.commands.demo import run_demo, suited_to
from pipeline.config import load_config
from pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "unknown key optim.lrr: did you mean 'lr'?"),
        ("batch.global_size=33", "batch.global_size=33 cannot be dealt to 2 ranks"),
        ("batch.global_size=64", "batch.global_size=64 is more than --train-clips 48"),
        ("model.num_classes=5", "model.num_classes=5: the demo's videos have 8 classes"),
    ],
)
def test_the_demo_refuses_overrides_before_it_renders(
    tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        run_demo(tmp_path, [override], {"train": 48, "val": 16})
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


def test_on_cpus_the_demo_is_its_recipe() -> None:
    assert suited_to("cpu", devices=1, cores=64) == []


@pytest.mark.parametrize(("gpus", "cores", "ranks", "workers"), [(1, 16, 1, 8), (8, 4, 2, 1)])
def test_on_gpus_the_demo_has_workers_one_micro_batch_and_the_same_batches(
    gpus: int, cores: int, ranks: int, workers: int
) -> None:
    recipe = load_config("demo")
    config = load_config("demo", suited_to("cuda", devices=gpus, cores=cores))
    assert config.launch.ranks_per_node == ranks
    assert config.data.workers == workers
    assert not config.deterministic
    assert config.batch_split(ranks) == (32 // ranks, 1)
    assert config.batch.global_size == recipe.batch.global_size
    assert (config.schedule, config.optim) == (recipe.schedule, recipe.optim)
