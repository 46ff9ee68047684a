"""The short form of the study of the tasks: every stage, and the going on after a stop."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.study.tasks import FULL, SEEDS, SHORT, run_tasks, table


@pytest.mark.slow
def test_every_stage_once_and_those_that_are_missing_again(tmp_path: Path) -> None:
    said: list[str] = []
    results = run_tasks(tmp_path, SHORT, said.append)
    assert len(said) == len(results) == 1 + 6 * SEEDS
    (tmp_path / "distilled-1.json").unlink()
    said.clear()
    again = run_tasks(tmp_path, SHORT, said.append)
    assert [line.partition(":")[0] for line in said] == ["distilled-1"]
    assert [r.losses for r in again] == [r.losses for r in results]

    rows = table(results)
    assert len(rows) == 2 + len(SHORT.stages())
    assert "similarity" in next(row for row in rows if "masked pre-training, no" in row)
    with pytest.raises(ConfigError, match="belongs to another study; choose another directory"):
        run_tasks(tmp_path, FULL, said.append)
