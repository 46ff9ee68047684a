from __future__ import annotations

import pytest

from pipeline.study.campaign import run_study
from pipeline.study.design import Design
from pipeline.study.designs import SHORT
from pipeline.study.store import Store

TINY = SHORT.model_copy(update={"data": {"motion": SHORT.data["motion"]}, "seeds": (0, 1)})


@pytest.fixture(scope="session")
def design() -> Design:
    return TINY


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A whole study in its short form; tests only read it."""
    folder = tmp_path_factory.mktemp("study") / "dir"
    return run_study(folder, TINY, lambda _: None)
