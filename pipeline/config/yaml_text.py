"""Parsing of YAML from files and command lines, with one error for all that can go wrong."""

from __future__ import annotations

from typing import Any

import yaml

from pipeline.errors import ConfigError

# PyYAML raises these for text that is not YAML, and for tags and dates that it cannot convert.
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
    """Parse a YAML text. Raises ConfigError, one line that begins with `where`."""
    try:
        return yaml.safe_load(text)
    except _NOT_YAML as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{where}: not YAML: {reason}") from error
