"""Stored configurations of earlier versions are read in today's words."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.checkpoint.trained import checkpoint_config
from pipeline.config import load_config, read_config
from pipeline.errors import ConfigError


def test_a_run_that_used_the_triton_scan_goes_on_with_the_best_there_is(tmp_path: Path) -> None:
    text = load_config("demo").to_yaml()
    assert "scan_backend: auto" in text
    (tmp_path / "config.yaml").write_text(
        text.replace("scan_backend: auto", "scan_backend: triton")
    )

    assert read_config(tmp_path).model.scan_backend == "auto"
    assert checkpoint_config(tmp_path).model.scan_backend == "auto"


def test_a_new_recipe_cannot_ask_for_it() -> None:
    with pytest.raises(ConfigError, match=r"model\.scan_backend"):
        load_config("demo", ["model.scan_backend=triton"])
