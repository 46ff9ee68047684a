"""Exit statuses of `vmp`, and the line that tells a user of bad input."""

from __future__ import annotations

from pydantic import ValidationError

from model.invalid import first_problem
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
        return first_problem(error, under=error.title)
    return str(error) if is_bad_input(error) else None
