"""Output for people, without secrets and without characters that a terminal would obey."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.redact import redact

if TYPE_CHECKING:
    from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs to stdout.")]


def printable(text: str) -> str:
    """Escape control characters, and marks that reverse or hide text, except line ends and tabs.

    Labels, reasons and file names come from outside and may hold a sequence such as "\\x1b[2J".
    """
    return "".join(c if c.isprintable() or c in "\n\t" else _escape(c) for c in text)


def one_line(text: str) -> str:
    """Escape line ends too, so that the text cannot look like several messages."""
    return printable(text).replace("\n", r"\n").replace("\t", " ")


def say(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print to stdout or stderr. All output of commands goes through this function."""
    typer.echo(printable(redact(str(text))), err=err, nl=nl)  # noqa: TID251 - here alone


def say_json(value: Any) -> None:
    """Print dataclasses, and lists and mappings of them, as JSON; numbers are finite or null."""
    say(json.dumps(_plain(value), indent=1, allow_nan=False))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table_console(piped_width: int = 200) -> Console:
    """Return a console for tables: as wide as the terminal, or `piped_width` in a pipe or file."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=piped_width)


class SafeFormatter(logging.Formatter):
    """Formatter of log lines and tracebacks that makes them as safe as the output of `say`."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(redact(super().format(record)))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
