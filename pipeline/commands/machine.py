"""`vmp doctor`, `demo`, `ui` and `audit`: this machine, and what lies on it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.arguments import Overrides
from pipeline.terminal import AsJson, say


def audit(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    places: Annotated[
        list[str] | None,
        typer.Argument(help="data.train=DIR, data.val=DIR: where the shards lie today."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Do not read the bytes of the shards again.")
    ] = False,
    as_json: AsJson = False,
    html: Annotated[Path | None, typer.Option(help="Write the report as a page.")] = None,
) -> None:
    """Prove from its records that a run saw exactly the samples it should, over all attempts.

    The exit status is 0 if that is proven, 1 if it is disproven, and 2 if it cannot be judged.

    Example: vmp audit runs/demo --html audit.html
    """
    from pipeline.commands.audit import audit_run

    sys.exit(audit_run(run, places or [], quick=quick, as_json=as_json, html=html))


def doctor(as_json: AsJson = False) -> None:
    """Check this machine and say what to do. The exit status is 1 when something must be done.

    Example: vmp doctor
    """
    from pipeline.commands.doctor import examine

    sys.exit(examine(as_json=as_json))


def demo(
    overrides: Overrides = None,
    root: Annotated[Path, typer.Option(help="Directory for all files.")] = Path(),
    train_clips: Annotated[int, typer.Option(min=1, help="Videos to render for training.")] = 6000,
    val_clips: Annotated[int, typer.Option(min=1, help="Videos to render for validation.")] = 800,
) -> None:
    """Run everything once on this machine: videos, shards, a training job, evaluation, MLflow.

    Example: vmp demo
    """
    from pipeline.commands.demo import run_demo

    sys.exit(run_demo(root, overrides or [], {"train": train_clips, "val": val_clips}))


def ui(
    runs: Annotated[Path, typer.Option(help="Directory of the runs.")] = Path("runs"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
) -> None:
    """Show the runs in MLflow's web page, served to this machine only.

    Example: vmp ui --runs runs
    """
    from pipeline.commands.ui import serve_ui

    sys.exit(serve_ui(runs, port, say))
