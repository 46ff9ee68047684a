"""One SLURM for all tests of this folder, and an undisturbed run for comparison."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import runs
from tests.conftest import require
from tests.slurm import cluster, drive


@pytest.fixture(scope="session")
def slurm() -> Iterator[Path]:
    """Three idle nodes; SLURM_CONF is exported. Yields the slurm.conf."""
    absent = cluster.missing()
    require(not absent, f"{', '.join(absent)} (apt-get install slurm-wlm munge)")
    with cluster.running_cluster() as conf:
        os.environ["SLURM_CONF"] = str(conf)
        yield conf
        del os.environ["SLURM_CONF"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the runs of a module."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, glyph_shards: Path) -> Path:
    """`drive.STEPS` steps by two ranks on this machine, without SLURM and in one go."""
    root = tmp_path_factory.mktemp("undisturbed")
    runs.run("train", *drive.overrides(root, glyph_shards, "undisturbed", drive.STEPS))
    return root / "undisturbed"
