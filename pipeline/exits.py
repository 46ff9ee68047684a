"""Exit statuses, and the errors that mean the user asked for something that cannot work."""

from __future__ import annotations

from textwrap import shorten

from pydantic import ValidationError

from data_prep.errors import DataError as PrepError
from data_prep.errors import one_line as one_line
from model.errors import ModelError
from pipeline.data.errors import DataError
from pipeline.errors import CheckpointError, ConfigError
from slurm.errors import ClusterError

DONE = 0
FAILED = 1
BAD_INPUT = 2
RESUMABLE = 75
"""Stopped early with a committed checkpoint: the same command goes on."""

USER_ERRORS = (ConfigError, CheckpointError, DataError, PrepError, ModelError, ClusterError)


def user_error(error: ValueError) -> str | None:
    """The line that tells the user of an error; None when it is no user's, but ours.

    Options that a command hands to a pydantic model are checked there, if not before.
    """
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        where = ".".join([error.title, *map(str, problem["loc"])])
        got = shorten(repr(problem["input"]), 80)
        return one_line(f"{where}: {problem['msg'].removeprefix('Value error, ')} (got {got})")
    return one_line(error) if isinstance(error, USER_ERRORS) else None
