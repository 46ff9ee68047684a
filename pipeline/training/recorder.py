"""Recording of metrics in metrics.jsonl and from there in MLflow, and of samples if asked."""

from __future__ import annotations

import getpass
import logging
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from pipeline import rundir
from pipeline.config import RunConfig, flatten
from pipeline.health.failure import classify
from pipeline.rundir import End, Start, durable
from pipeline.rundir.metrics import MetricsLog, read_metrics
from pipeline.rundir.samples import SampleLog, drop_samples_from, logged_from
from pipeline.rundir.summary import read_summary
from pipeline.tracking import DatasetUse, Tracker
from pipeline.training.distributed import World, barrier, from_main

logger = logging.getLogger(__name__)


# These values go to metrics.jsonl and MLflow only, so that a log line stays short enough to read.
_UNSHOWN = ("step_s", "step_s_p50", "step_s_p95", "save_s", "save_blocked_s", "memory_peak_gib")
_UNSHOWN_KINDS = ("layers",)


class Pace(NamedTuple):
    """Progress of a run, shown in the log as "/1870, 0:05:40 left,"."""

    total_steps: int
    left_s: float

    def __str__(self) -> str:
        return f"/{self.total_steps}, {timedelta(seconds=round(self.left_s))} left,"


class Recorder:
    """Writer of metrics on rank 0, and of a sample log on every rank if the configuration asks.

    A row reaches the disk before it is sent to MLflow.
    """

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        world: World,
        resume_step: int,
        datasets: Iterable[DatasetUse] = (),
    ) -> None:
        """Open the logs and drop what a dead attempt logged after `resume_step`. Collective."""
        self._run_dir = run_dir
        self._world = world
        self._config = config
        self._rows: MetricsLog | None = None
        self._samples: SampleLog | None = None
        self._open_logs(resume_step)
        if world.is_main:
            self._tracker = Tracker(
                config.tracking,
                run_dir,
                params=dict(flatten(config.model_dump(mode="json"))),
                tags=_tags(run_dir),
                datasets=datasets,
            )
            # An earlier attempt may have failed to deliver rows; the tracker skips those that
            # MLflow already has.
            self._tracker.log_rows(read_metrics(run_dir))
            self._tracker.log_artifact(run_dir / rundir.CONFIG_FILE)
            for name in (rundir.ATTEMPTS_FILE, rundir.ROLLBACKS_FILE):
                if (run_dir / name).exists():
                    self._tracker.log_artifact(run_dir / name)

    def _open_logs(self, resume_step: int) -> None:
        if self._world.is_main:
            _note_start(self._config, self._run_dir, self._world, resume_step)
            drop_samples_from(self._run_dir, resume_step)
            self._rows = MetricsLog(self._run_dir, resume_step)
        from_main(None)  # no rank may append before rank 0 has cut the sample logs
        if self._config.log_samples:
            self._samples = SampleLog(self._run_dir, self._world.rank)

    def rewind(self, step: int) -> None:
        """Drop what was logged after `step`, to which the run was rolled back. Collective.

        MLflow keeps the rows that it has, so its curves show the spike.
        """
        for log in (self._rows, self._samples):
            if log is not None:
                log.close()
        barrier()  # rank 0 replaces the files that the others have just closed
        self._open_logs(step)
        if self._rows is not None:
            self._tracker.log_artifact(self._run_dir / rundir.ROLLBACKS_FILE)

    def record(
        self, step: int, kind: str, values: dict[str, float], *, pace: Pace | None = None
    ) -> None:
        """Write one row of metrics. Only rank 0 writes; `pace` appears in the log alone."""
        if self._rows is None:
            return
        self._tracker.log_rows([self._rows.write(step, kind, values)])
        if kind in _UNSHOWN_KINDS:
            return
        keys = [key for key in values if key not in _UNSHOWN]
        shown = "  ".join(f"{key} {values[key]:.4g}" for key in keys)
        logger.info("step %d%s %s  %s", step, pace or "", kind, shown)

    def samples(self, step: int, keys: list[str]) -> None:
        """Log the keys of the samples that this rank trains on in `step`."""
        if self._samples is not None:
            self._samples.write(step, keys)

    def sync(self) -> None:
        """Force the records to disk. Call this before saving a checkpoint that relies on them."""
        for log in (self._rows, self._samples):
            if log is not None:
                log.sync()

    def note_end(self, end: End) -> None:
        """Record why the attempt ends early as tags of the MLflow run."""
        if self._rows is not None:
            self._tracker.note_end(end)

    def mlflow_run_id(self) -> str | None:
        """Return the id of the MLflow run. Rank 0 only.

        Returns None when the store does not answer within `tracking.flush_timeout_s`.
        """
        return self._tracker.await_run_id()

    def close(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the attempt's records; the arguments are those of `__exit__`."""
        if self._samples is not None:
            self._samples.close()
        if self._rows is None:
            return
        if error is not None:
            self.note_end(End(classify(error), " ".join(str(error).split())))
        self._rows.close()
        summary = read_summary(self._run_dir)
        if kind is None and summary is not None:
            self._tracker.log_artifact(self._run_dir / rundir.SUMMARY_FILE)
            self._tracker.log_model(self._run_dir.name, summary.steps)
            self._tracker.close("FINISHED")
        else:
            self._tracker.close("FAILED" if kind else "KILLED")


def _note_start(config: RunConfig, run_dir: Path, world: World, step: int) -> None:
    """Record how the ranks share the batches of this attempt, and what it is about to discard."""
    micro_batch, _ = config.batch_split(world.size)
    rundir.append_start(
        run_dir,
        Start(
            step=step,
            world_size=world.size,
            micro_batch=micro_batch,
            logs_samples=config.log_samples,
            discarded=logged_from(run_dir, step),
        ),
    )


def _tags(run_dir: Path) -> dict[str, str]:
    """Return the provenance as MLflow tags, with the tags that fill MLflow's own columns."""
    record = durable.read_json(run_dir / rundir.PROVENANCE_FILE)
    tags = {f"provenance.{key}": str(value) for key, value in flatten(record)}
    program, *arguments = map(str, record.get("argv") or ["vmp"])
    source = " ".join([Path(program).name, *arguments[:1]])
    tags |= {"mlflow.source.name": source, "mlflow.source.type": "LOCAL"}
    if record.get("git"):
        tags["mlflow.source.git.commit"] = str(record["git"]["commit"])
    with suppress(OSError, KeyError):  # a container's user id may have no name
        tags["mlflow.user"] = getpass.getuser()
    return tags
