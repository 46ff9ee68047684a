"""Implements `vmp audit`: the report on the terminal, as JSON or as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.audit.audit import audit
from pipeline.audit.page import write_page
from pipeline.audit.result import Audit, Stretch
from pipeline.commands.table import print_table
from pipeline.errors import ConfigError
from pipeline.terminal import one_line, say


def audit_run(
    run: Path, places: Sequence[str], *, quick: bool, as_json: bool, html: Path | None
) -> int:
    """Audit a run, report, and return the exit status: 0 proven, 1 disproven, 2 not judged."""
    found = audit(run, places, quick=quick)
    if html is not None:
        try:
            write_page(found, html)
        except OSError as error:
            raise ConfigError(f"--html {html}: cannot be written: {error.strerror}") from error
    if as_json:
        say(found.model_dump_json(indent=1))
    else:
        _print(found)
    return found.verdict.exit_status


def _print(found: Audit) -> None:
    passes = "" if found.epochs is None else f", {found.epochs:g} epochs"
    say(one_line(f"run      {found.run}"))
    say(f"steps    {found.steps:,} committed, of {found.global_batch:,} samples{passes}")
    if found.skipped_steps:
        say(f"skipped  {found.skipped_steps:,} steps were read and left the weights alone")
    if found.left_out_steps:
        say(f"left out {found.left_out_steps:,} steps after rollbacks, see rollbacks.jsonl")
    if found.uncommitted:
        logged = sum(found.uncommitted.values())
        say(
            f"beyond   {len(found.uncommitted):,} steps ({logged:,} samples) after the newest "
            "checkpoint; the next start discards them"
        )
    say(one_line(f"data     {found.data} ({found.data_digest[:12]})"))
    say()
    print_table(
        ["committed steps", "ranks", "micro-batch", "discarded at its start"],
        [_row(stretch) for stretch in found.stretches],
    )
    say()
    print_table(
        ["check", "verdict", "what was compared"],
        [[check.name, check.verdict, check.detail] for check in found.checks],
    )
    for check in found.checks:
        for text in (*check.faults, *check.doubts):
            say(one_line(f"  {check.name}: {text}"))
    say()
    say(one_line(f"{found.verdict}: {found.reason}"))


def _row(stretch: Stretch) -> list[str]:
    steps = f"{stretch.first_step} to {stretch.end_step - 1}" if stretch.steps else "none"
    discarded = "nothing"
    if stretch.discarded:
        samples = sum(stretch.discarded.values())
        discarded = (
            f"{len(stretch.discarded)} steps from {min(stretch.discarded)} on, {samples} samples"
        )
    shares = [stretch.world_size, stretch.micro_batch]
    return [steps, *("?" if share is None else str(share) for share in shares), discarded]
