"""The entry point of `vmp`: the list of its commands, and how an error ends one.

Only this module and `commands` may import all four packages. Each command imports what it needs
when it runs, so that `vmp --help` answers at once.
"""

from __future__ import annotations

import sys
import traceback
from types import TracebackType
from typing import Annotated

import typer

from pipeline.commands import bench, data, jobs, machine, planning, predict, runs, study, weights
from pipeline.isolation import isolate, set_umask
from pipeline.terminal import one_line, say

app = typer.Typer(
    name="vmp",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(runs.train)
app.command()(runs.submit)
app.command("eval")(weights.eval_command)
app.command()(weights.compare)
app.command()(predict.predict)
app.command()(weights.convert)
app.command()(weights.export)
app.command()(planning.plan)
app.command()(planning.config)
app.command()(planning.recipes)
app.command()(planning.reproduce)
app.command()(machine.audit)
app.command()(machine.doctor)
app.command()(machine.demo)
app.command()(machine.ui)
app.add_typer(data.app, name="data")
app.add_typer(jobs.app, name="jobs")
app.add_typer(bench.app, name="bench")
app.add_typer(study.app, name="study")
_LONGEST = 2000  # an error may quote a long line of a file, so this many characters are shown


def main() -> None:
    """Run a command; bad input is one line and exit status 2, a failing machine one and status 1.

    The latter is a full disk, an I/O error or too little memory; the same command goes on later.
    """
    isolate()
    set_umask(private=False)
    sys.excepthook = _report
    try:
        app()
    except Exception as error:
        known = _status_and_line(error)
        if known is None:
            raise
        status, line = known
        say(f"error: {one_line(line)[:_LONGEST]}", err=True)
        sys.exit(status)


def _status_and_line(error: Exception) -> tuple[int, str] | None:
    """What ends a command on an error that has a known cause; None for a fault of ours."""
    from data_prep.errors import MachineTrouble, is_of_machine
    from pipeline import exits

    if isinstance(error, ValueError):
        line = exits.user_error(error)
        return None if line is None else (exits.BAD_INPUT, line)
    if isinstance(error, MachineTrouble):
        return exits.FAILED, str(error)
    if isinstance(error, OSError) and is_of_machine(error):
        return exits.FAILED, f"{error}; run the same command again once the machine has recovered"
    return None


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        say(f"videomambapro {version('videomambapro')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and stop.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """VideoMambaPro: shard videos, train on SLURM with DeepSpeed, track in MLflow."""


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback through `say`, which hides secrets that it may quote."""
    say("".join(traceback.format_exception(kind, error, trace)), err=True, nl=False)


if __name__ == "__main__":
    main()
