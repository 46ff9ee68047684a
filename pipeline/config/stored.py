"""Reading the configuration that a run directory stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config.load import build_config
from pipeline.config.tree import RunConfig
from pipeline.config.yaml_text import parse_yaml
from pipeline.errors import ConfigError
from pipeline.rundir.paths import CONFIG_FILE

_RESTORE = "put back the config.yaml of this run (MLflow has a copy), or choose another name=..."


def in_todays_words(raw: dict[str, Any]) -> dict[str, Any]:
    """Replace values that earlier versions knew in a stored tree, so that old runs resume.

    Version 0.1.0 had a Triton scan. Its name becomes "auto", a GPU's best scan, which computes the
    same function. A tree without `format` is from before 2, when `optim.layer_decay` was stored as
    0.75 but had no effect under the profile `corrected`.
    """
    model, optim = raw.get("model"), raw.get("optim")
    if isinstance(model, dict) and model.get("scan_backend") == "triton":
        raw = raw | {"model": model | {"scan_backend": "auto"}}
    if "format" not in raw and isinstance(optim, dict) and optim.get("profile") != "parity":
        raw = raw | {"optim": optim | {"layer_decay": 1.0}}
    return raw


def read_config(run_dir: Path) -> RunConfig:
    """Read the configuration of a run directory. Raises ConfigError when it cannot be read."""
    path = run_dir / CONFIG_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; is this a run?") from error
    try:
        raw = parse_yaml(content, str(path))
    except ConfigError as error:
        raise ConfigError(f"{error}; {_RESTORE}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: empty, or not a mapping of sections; {_RESTORE}")
    return build_config(in_todays_words(raw), source=str(path))
