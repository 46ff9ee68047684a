"""Exit statuses of `vmp`, and the message that tells a user of bad input."""

from __future__ import annotations

from pydantic import ValidationError

from model.invalid import first_problem
from pipeline.rundir.exits import BAD_INPUT, DONE, FAILED, RESUMABLE

__all__ = ["BAD_INPUT", "DONE", "FAILED", "RESUMABLE", "is_bad_input", "user_error"]


def is_bad_input(error: BaseException) -> bool:
    """Return whether an error means bad input, which its `exit_status` says."""
    return getattr(error, "exit_status", FAILED) == BAD_INPUT


def user_error(error: ValueError) -> str | None:
    """Return the message for an error of the user; None when the error is a bug in this project.

    A ValidationError is the user's, because pydantic models validate the options of commands.
    """
    if isinstance(error, ValidationError):
        return first_problem(error, under=error.title)
    return str(error) if is_bad_input(error) else None
