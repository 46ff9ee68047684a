"""status.json: what a run is doing, or how its last attempt ended."""

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
    """All states of a run. The last three are never written: a reader concludes them."""

    QUEUED = "queued"
    """Its job was requeued and has not started again."""
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    """Early, with a committed checkpoint."""
    CANCELLED = "cancelled"
    """Killed by a person."""
    FAILED = "failed"
    NEW = "never started"
    LOST = "lost"
    """It was queued or running, but there is no job any more."""
    UNREADABLE = "unreadable"


def _known_class(value: object) -> object:
    return value if value in set(StopClass) else None


class RunStatus(Record):
    """What status.json holds."""

    state: State
    pid: int = 0
    """Of the process that wrote it."""
    attempt: str = ""
    """See `attempt_id`."""
    updated: str = Field(
        default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"),
    )
    exit_status: int | None = None
    """Of the run; None while it has none."""
    stop_class: Annotated[StopClass | None, BeforeValidator(_known_class)] = None
    reason: str = ""

    def of_attempt(self, attempt: str) -> RunStatus:
        """This, or that of a run that never started when it was written in another attempt."""
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
    """Replace the status of a run; `end` and `exit_status` when an attempt of it is over."""
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
    """Put back a status that was read before, if there was one."""
    if status.state in (State.NEW, State.UNREADABLE):
        forget_status(run_dir)
        return
    _write(run_dir, status)


def _write(run_dir: Path, status: RunStatus) -> None:
    text = status.model_dump_json(indent=1, exclude_none=True) + "\n"
    # A full disk may be what ended the run: "running" must not stay behind.
    durable.write_text_even_on_a_full_disk(run_dir / STATUS_FILE, text)


def read_status(run_dir: Path) -> RunStatus:
    """The last status; its state is NEW before the first, UNREADABLE when there is no whole one."""
    status = records.read(run_dir / STATUS_FILE, RunStatus)
    if status is not None:
        return status
    there = (run_dir / STATUS_FILE).exists()
    return RunStatus(state=State.UNREADABLE, updated="") if there else NEVER_STARTED


def forget_status(run_dir: Path) -> None:
    """Before a new job: the last one's status must not be taken for how this one ended."""
    (run_dir / STATUS_FILE).unlink(missing_ok=True)
