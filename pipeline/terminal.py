"""What is shown to a person: no secrets, and nothing that a terminal would obey."""

from __future__ import annotations

import logging

import typer

from pipeline.redact import redact


def printable(text: str) -> str:
    """`text` with control characters, and marks that turn or hide text, written as escapes.

    Labels, reasons and file names come from elsewhere: one may hold "\\x1b[2J" or worse. Line ends
    and tabs stay.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else _escape(c) for c in text)


def one_line(text: str) -> str:
    """`printable`, line ends included: for what must not look like several messages."""
    return printable(text).replace("\n", r"\n").replace("\t", " ")


def say(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print on stdout or stderr. Everything that commands show goes through here."""
    typer.echo(printable(redact(str(text))), err=err, nl=nl)  # noqa: TID251 - here alone


class SafeFormatter(logging.Formatter):
    """Log lines and tracebacks as `say` would print them."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(redact(super().format(record)))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
