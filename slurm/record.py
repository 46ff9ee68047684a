"""job.json: the newest submission of a run, from which it can be watched, ended and repeated."""

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
    """Where the ranks of a run are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: int = 1
    ranks_per_node: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 1


class JobRecord(Record):
    """What was submitted."""

    cluster: Cluster = "slurm"
    job_id: str = ""
    log: Path = Path()
    """Log of rank 0."""
    started: float | None = None
    """Of a local job: when its controller was started, which tells it from another process."""
    resources: Resources = Resources()
    profile: ClusterProfile = ClusterProfile()
    folder: Path = Path()
    """Where it was submitted: relative paths of the recipe start there."""
    code: str = ""
    """Directory of the code snapshot."""
    then: str | None = None
    """The `vmp` command that a successful end sets off, as a job of its own."""

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

    Raises ClusterError when its record cannot be read: whether the run has a job is unknown then.
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
    """The newest submission, for the job itself.

    Defaults when it cannot be read, or the job was faster than the one who submitted it.
    """
    try:
        return find_record(run_dir) or JobRecord()
    except ClusterError:
        return JobRecord()
