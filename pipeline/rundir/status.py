"""status.json: the state of a run, and how its last attempt ended."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from pipeline.rundir import durable, records
from pipeline.rundir.attempts import attempt_id
from pipeline.rundir.ends import End, StopClass
from pipeline.rundir.paths import STATUS_FILE
from pipeline.rundir.records import Record


class State(StrEnum):
    """States of a run. The last three are never written; readers infer them."""

    QUEUED = "queued"
    """The run's job was requeued and has not started again."""
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    """The run stopped early with a committed checkpoint."""
    CANCELLED = "cancelled"
    """A user killed the run."""
    FAILED = "failed"
    NEW = "never started"
    LOST = "lost"
    """The run was queued or running, but its job no longer exists."""
    UNREADABLE = "unreadable"


def _known_class(value: object) -> object:
    return value if value in set(StopClass) else None


class RunStatus(Record):
    """The content of status.json."""

    state: State
    pid: int = 0
    """Process id of the writer."""
    attempt: str = ""
    """Id of the attempt, see `attempt_id`."""
    updated: str = Field(
        default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"),
    )
    exit_status: int | None = None
    """Exit status of the run; None while it is not over."""
    stop_class: Annotated[StopClass | None, BeforeValidator(_known_class)] = None
    reason: str = ""

    def of_attempt(self, attempt: str) -> RunStatus:
        """Return this status if `attempt` wrote it, else the status of a run that never started."""
        return self if self.attempt == attempt else NEVER_STARTED


NEVER_STARTED = RunStatus(state=State.NEW, updated="")


def write_status(
    run_dir: Path,
    state: State,
    end: End | None = None,
    *,
    exit_status: int | None = None,
    attempt: str | None = None,
) -> None:
    """Replace the status of a run. Give `end` and `exit_status` once the attempt is over."""
    status = RunStatus(
        state=state,
        pid=os.getpid(),
        attempt=attempt_id() if attempt is None else attempt,
        exit_status=exit_status,
        stop_class=None if end is None else end.stop_class,
        reason="" if end is None else end.reason,
    )
    _write(run_dir, status)


def restore_status(run_dir: Path, status: RunStatus) -> None:
    """Write back a status that was read before; without a readable one, delete the file."""
    if status.state in (State.NEW, State.UNREADABLE):
        forget_status(run_dir)
        return
    _write(run_dir, status)


def _write(run_dir: Path, status: RunStatus) -> None:
    text = status.model_dump_json(indent=1, exclude_none=True) + "\n"
    # A full disk may have ended the run, and the file must not go on saying "running".
    durable.write_text_even_on_a_full_disk(run_dir / STATUS_FILE, text)


def read_status(run_dir: Path) -> RunStatus:
    """Return the last status. Its state is NEW without a file, UNREADABLE if that is invalid."""
    status = records.read(run_dir / STATUS_FILE, RunStatus)
    if status is not None:
        return status
    there = (run_dir / STATUS_FILE).exists()
    return RunStatus(state=State.UNREADABLE, updated="") if there else NEVER_STARTED


def forget_status(run_dir: Path) -> None:
    """Delete the status before a new job, so that the last job's end is not taken for its own."""
    (run_dir / STATUS_FILE).unlink(missing_ok=True)
