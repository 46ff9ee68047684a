"""`vmp jobs`: watch and end submitted runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Watch and end submitted runs.")

RunsDir = Annotated[Path, typer.Option("--runs", help="Directory of the runs.")]


@app.command("list")
def jobs_list(runs: RunsDir = Path("runs")) -> None:
    """Every run: state, step, loss, last checkpoint, reason of the last stop.

    Example: vmp jobs list --runs runs
    """
    from pipeline.commands.watch import list_jobs

    for row in list_jobs(runs):
        loss = "-" if row.loss is None else f"{row.loss:.4f}"
        line = f"{row.name}  {row.state}  job {row.job}  step {row.step}  loss {loss}"
        typer.echo(f"{line}  checkpoint {row.checkpoint}  {row.reason}".rstrip())


@app.command("logs")
def jobs_logs(
    name: Annotated[str, typer.Argument(help="Name of the run.")],
    runs: RunsDir = Path("runs"),
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")] = False,
) -> None:
    """Rank 0's log of the newest job of a run.

    Example: vmp jobs logs demo -f
    """
    from pipeline.commands.watch import print_log

    print_log(runs / name, typer.echo, follow=follow)


@app.command("cancel")
def jobs_cancel(
    name: Annotated[str, typer.Argument(help="Name of the run.")],
    runs: RunsDir = Path("runs"),
    save: Annotated[bool, typer.Option("--save", help="Commit a checkpoint first.")] = False,
) -> None:
    """End the job of a run; the same `vmp submit` goes on later.

    Example: vmp jobs cancel demo --save
    """
    from pipeline.commands.watch import cancel

    typer.echo(cancel(runs / name, save=save))
