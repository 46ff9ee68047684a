"""`vmp jobs`: commands that watch, end and resume submitted runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.terminal import AsJson, say, say_json

app = typer.Typer(no_args_is_help=True, help="Watch, end and resume submitted runs.")


def complete_run(typed: str, ctx: typer.Context) -> list[str]:
    """Complete the name of a run in the shell with those under `--runs`."""
    from pipeline import rundir

    found = Path(ctx.params.get("runs") or "runs").glob(f"{typed}*/{rundir.CONFIG_FILE}")
    return sorted(path.parent.name for path in found)


RunsDir = Annotated[Path, typer.Option("--runs", help="Directory of the runs.")]
Name = Annotated[str, typer.Argument(help="Name of the run.", autocompletion=complete_run)]


@app.command("list")
def jobs_list(runs: RunsDir = Path("runs"), as_json: AsJson = False) -> None:
    """List the runs: state, nodes, step, loss, ETA, restarts, last checkpoint, reason of last stop.

    Example: vmp jobs list --runs runs
    """
    from pipeline.commands.table import print_table
    from pipeline.commands.watch import JobRow, list_jobs

    rows = list_jobs(runs)
    if as_json:
        say_json(rows)
        return
    header = list(JobRow(name="", state="").cells())
    print_table(header, [list(row.cells().values()) for row in rows])


@app.command("show")
def jobs_show(name: Name, runs: RunsDir = Path("runs"), as_json: AsJson = False) -> None:
    """Show one run: its row of the list, how its attempts ended, and the batches it left out.

    Example: vmp jobs show demo
    """
    from pipeline.commands.show import show

    page = show(runs / name)
    if as_json:
        say_json(page.as_json())
        return
    for line in page.lines():
        say(line)


@app.command("logs")
def jobs_logs(
    name: Name,
    runs: RunsDir = Path("runs"),
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends.")
    ] = False,
    rank: Annotated[int, typer.Option(min=0, help="Rank whose log to print.")] = 0,
) -> None:
    """Print a rank's log of the newest job of a run, and the first failure of any rank.

    Example: vmp jobs logs demo -f
    """
    from pipeline.commands.watch import print_log

    print_log(runs / name, say, follow=follow, rank=rank)


@app.command("cancel")
def jobs_cancel(
    name: Name,
    runs: RunsDir = Path("runs"),
    save: Annotated[bool, typer.Option("--save", help="Commit a checkpoint first.")] = False,
) -> None:
    """End the job of a run; `vmp jobs resume` resumes it later.

    Example: vmp jobs cancel demo --save
    """
    from pipeline.commands.watch import cancel

    say(cancel(runs / name, save=save))


@app.command("resume")
def jobs_resume(name: Name, runs: RunsDir = Path("runs")) -> None:
    """Submit an ended run again, with the profile and nodes of its last submission.

    Example: vmp jobs resume demo
    """
    from pipeline.commands.watch import resume

    say(resume(runs / name))


@app.command("nodes")
def jobs_nodes(
    runs: RunsDir = Path("runs"),
    forgive: Annotated[str | None, typer.Option(help="Forget the faults of this node.")] = None,
) -> None:
    """List nodes at which runs failed; new jobs avoid them for the profile's `bad_node_hours`.

    Example: vmp jobs nodes --forgive node7
    """
    from pipeline.commands import watch

    if forgive is not None:
        say(watch.forgive(runs, forgive))
        return
    for line in watch.bad_nodes(runs):
        say(line)
