"""Exit statuses of `vmp`, and the line that tells a user of bad input."""

from __future__ import annotations

from textwrap import shorten

from pydantic import ValidationError

from pipeline.rundir.exits import BAD_INPUT, DONE, FAILED, RESUMABLE

__all__ = ["BAD_INPUT", "DONE", "FAILED", "RESUMABLE", "is_bad_input", "user_error"]


def is_bad_input(error: BaseException) -> bool:
    """Does the error say so itself? Those that mean bad input carry `exit_status`."""
    return getattr(error, "exit_status", FAILED) == BAD_INPUT


def user_error(error: ValueError) -> str | None:
    """The line that tells the user of an error; None when it is no user's, but ours.

    Options that a command hands to a pydantic model are checked there, if not before.
    """
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        where = ".".join([error.title, *map(str, problem["loc"])])
        got = shorten(repr(problem["input"]), 80)
        return f"{where}: {problem['msg'].removeprefix('Value error, ')} (got {got})"
    return str(error) if is_bad_input(error) else None
