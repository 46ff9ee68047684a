"""`vmp study`: many small trainings of one design, and what they say with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.terminal import say

app = typer.Typer(no_args_is_help=True, help="Run a scientific study and report it.")


@app.command("ablation")
def study_ablation(
    folder: Annotated[Path, typer.Argument(help="Directory of the study, new or begun.")],
    size: Annotated[
        Literal["full", "short"],
        typer.Option(help="full: hours on one core; short: every path in seconds, for tests."),
    ] = "full",
) -> None:
    """Train layout x start x mask on two data sets with tuning and seeds; see docs/science.md.

    The same command goes on with a study that was stopped. Start it several times on one directory,
    or as the elements of a SLURM array, to share the work.

    Example: vmp study ablation study
    """
    from pipeline.study.campaign import run_study
    from pipeline.study.designs import DESIGNS

    run_study(folder, DESIGNS[size], say)
    say(f"finished; `vmp study report {folder}` writes tables and figures")


@app.command("report")
def study_report(
    source: Annotated[Path, typer.Argument(help="Directory of a study, or a report's JSON file.")],
    out: Annotated[Path, typer.Option(help="Directory for JSON and figures.")] = Path(
        "benchmarks/results"
    ),
    page: Annotated[
        Path | None, typer.Option(help="Markdown file whose generated sections are replaced.")
    ] = None,
) -> None:
    """Write results, figures and tables of the units that have finished so far.

    Example: vmp study report study --page docs/science.md
    """
    from pipeline.study.report import write_report

    for path in write_report(source, out, page):
        say(path)


@app.command("tasks")
def study_tasks(
    folder: Annotated[Path, typer.Argument(help="Directory of the study, new or begun.")],
    size: Annotated[
        Literal["full", "short"],
        typer.Option(help="full: half an hour on one core; short: seconds, for tests."),
    ] = "full",
) -> None:
    """Train from scratch, distilled, and after masked or image pre-training; see docs/training.md.

    The same command goes on with a study that was stopped.

    Example: vmp study tasks tasks
    """
    from pipeline.study.tasks import SIZES, run_tasks, table

    say("\n".join(table(run_tasks(folder, SIZES[size], say))))
