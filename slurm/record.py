"""The record job.json of a run's newest submission, which serves to watch, end or repeat it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipeline.rundir import records
from pipeline.rundir.paths import JOB_FILE
from pipeline.rundir.records import Record
from slurm.errors import ClusterError
from slurm.policy import RetryPolicy
from slurm.profile import ClusterProfile

Cluster = Literal["local", "slurm"]


class Resources(BaseModel):
    """The nodes, ranks and devices of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: int = 1
    ranks_per_node: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 1


class JobRecord(Record):
    """One submission of a run."""

    cluster: Cluster = "slurm"
    job_id: str = ""
    log: Path = Path()
    """The log of rank 0."""
    started: float | None = None
    """Start time of a local job's controller, which tells it from a later process of its pid."""
    resources: Resources = Resources()
    profile: ClusterProfile = ClusterProfile()
    folder: Path = Path()
    """The directory of submission, from which relative paths of the recipe start."""
    code: str = ""
    """The directory of the code snapshot."""
    then: str | None = None
    """The `vmp` command to run as its own job after a successful end."""

    @property
    def retry(self) -> RetryPolicy:
        return self.profile.retry

    @property
    def grace_s(self) -> int:
        return self.profile.grace_s

    def write(self, run_dir: Path) -> None:
        records.write(run_dir / JOB_FILE, self)


def find_record(run_dir: Path) -> JobRecord | None:
    """The newest submission, or None when the run was never submitted.

    Raises ClusterError when the record cannot be read: then nobody knows whether a job runs.
    """
    path = run_dir / JOB_FILE
    record = records.read(path, JobRecord)
    if record is None and path.exists():
        raise ClusterError(
            f"{path}: not the whole record of a job, so whether it still runs is unknown; remove "
            "the file once `squeue --me` and `ps` show no job of this run"
        )
    return record


def read_record(run_dir: Path) -> JobRecord:
    """The newest submission, for use inside the job.

    Returns defaults when the record is damaged, or when the job starts before its submitter has
    written it.
    """
    try:
        return find_record(run_dir) or JobRecord()
    except ClusterError:
        return JobRecord()
