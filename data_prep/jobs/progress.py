"""Measures the progress of a sharding run from files that its jobs write."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from data_prep.durable import replace
from data_prep.jobs.record import record_name
from data_prep.storage import open_store
from data_prep.workdir import Workdir


class JobReport(BaseModel):
    """The counts of one job since its start, rewritten about once a second."""

    model_config = ConfigDict(extra="forbid")

    started: float
    updated: float
    done: int = 0
    failed: int = 0
    bytes_in: int = 0


@dataclass(slots=True)
class JobProgress:
    """Counts the clips of this job and writes the counts at most once a second."""

    path: Path
    report: JobReport = field(
        default_factory=lambda: JobReport(started=time.time(), updated=time.time())
    )

    def count(self, *, bytes_in: int, failed: bool) -> None:
        self.report.done += 1
        self.report.failed += failed
        self.report.bytes_in += bytes_in
        if time.time() - self.report.updated >= 1.0:
            self.flush()

    def flush(self) -> None:
        self.report.updated = time.time()
        replace(self.path, self.report.model_dump_json().encode())


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a whole run."""

    total: int
    done: int
    failed: int
    videos_per_s: float
    mb_per_s: float

    @property
    def eta_s(self) -> float | None:
        return (self.total - self.done) / self.videos_per_s if self.videos_per_s > 0 else None

    def summary(self) -> str:
        left = "" if self.eta_s is None else f", {timedelta(seconds=round(self.eta_s))} left"
        failed = f", {self.failed} left out" if self.failed else ""
        return f"{self.videos_per_s:.1f} videos/s, {self.mb_per_s:.1f} MB/s{failed}{left}"


def read_progress(directory: Path, *, total: int, already: int) -> Progress:
    """Add up the reports of all jobs; `already` clips were finished when the jobs started."""
    reports = []
    for path in sorted(directory.glob("*.json")):
        with suppress(ValueError):  # a crash may leave the file empty, since it is not flushed
            reports.append(JobReport.model_validate_json(path.read_bytes()))
    done = sum(report.done for report in reports)
    seconds = 0.0
    if reports:
        seconds = max(r.updated for r in reports) - min(r.started for r in reports)
    return Progress(
        total=total,
        done=min(total, already + done),
        failed=sum(report.failed for report in reports),
        videos_per_s=done / seconds if seconds > 0 else 0.0,
        mb_per_s=sum(report.bytes_in for report in reports) / 1e6 / seconds if seconds > 0 else 0.0,
    )


class RunProgress:
    """The progress of all jobs on one work directory, wherever they run."""

    def __init__(self, work: Path) -> None:
        self._workdir = Workdir(work)
        plans = self._workdir.plans()
        store = open_store(plans[0].out, self._workdir.scratch)
        finished = set(store.names())
        self._total, self._already = 0, 0
        for plan in plans:
            counts = self._workdir.clip_counts(plan)
            self._total += sum(counts)
            self._already += sum(
                count
                for name, count in zip(plan.shard_names(), counts, strict=True)
                if record_name(name) in finished
            )

    def read(self) -> Progress:
        return read_progress(self._workdir.progress, total=self._total, already=self._already)


@contextmanager
def progress_bar(work: Path) -> Iterator[None]:
    """Draw the progress of all jobs while the block runs."""
    run = RunProgress(work)
    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    stop = threading.Event()
    with bar:
        task = bar.add_task("sharding", total=None, rate="")

        def update() -> None:
            state = run.read()
            bar.update(task, total=state.total, completed=state.done, rate=state.summary())

        def draw() -> None:
            while not stop.wait(0.5):
                update()

        thread = threading.Thread(target=draw, daemon=True, name="progress")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            update()
