"""One undisturbed training run, which many tests compare theirs with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import runs

STEPS = 40


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def undisturbed(root: Path, glyph_shards: Path) -> Path:
    """Two ranks, ZeRO-1, 40 steps in one go; every tenth and the best have a checkpoint."""
    saves = {"checkpoint__every_steps": 10, "checkpoint__keep_every_steps": 10}
    runs.run(
        "train",
        *runs.overrides(root, glyph_shards, "undisturbed", schedule__max_steps=STEPS, **saves),
    )
    return root / "undisturbed"
