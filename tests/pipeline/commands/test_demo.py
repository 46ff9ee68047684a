"""What `vmp demo` refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.commands.demo import run_demo
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
