"""YAML from files and command lines, whatever they hold."""

from __future__ import annotations

from typing import Any

import yaml

from pipeline.errors import ConfigError

# What PyYAML raises on a text that is not YAML, or whose tags and dates it cannot turn into values.
_NOT_YAML = (
    yaml.YAMLError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


def parse_yaml(text: str | bytes, where: str) -> Any:
    """The value of a YAML text. Raises ConfigError, which begins with `where`, in one line."""
    try:
        return yaml.safe_load(text)
    except _NOT_YAML as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{where}: not YAML: {reason}") from error
