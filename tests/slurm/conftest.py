"""One SLURM for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.slurm import cluster


@pytest.fixture(scope="session")
def slurm() -> Iterator[Path]:
    """Three idle nodes; SLURM_CONF is exported. Yields the slurm.conf."""
    absent = cluster.missing()
    require(not absent, f"{', '.join(absent)} (apt-get install slurm-wlm munge)")
    with cluster.running_cluster() as conf:
        os.environ["SLURM_CONF"] = str(conf)
        yield conf
        del os.environ["SLURM_CONF"]
