"""The schema of the run directory: its paths, durable writing, and a record for each file.

`pipeline` and `slurm` both read and write runs through this package, which imports the standard
library and pydantic only.
"""

from pipeline.rundir.attempts import Attempt, append_attempt, attempt_id, read_attempts
from pipeline.rundir.ends import End, StopClass
from pipeline.rundir.failures import Failure, first_failure, forget_failures
from pipeline.rundir.heartbeats import (
    Heartbeat,
    Phase,
    forget_heartbeats,
    read_heartbeat,
    read_heartbeats,
)
from pipeline.rundir.lock import RunInUseError, exclusive, is_active, refuse_active
from pipeline.rundir.marks import RankMark, read_marks
from pipeline.rundir.paths import (
    ATTEMPTS_FILE,
    CHECKPOINTS,
    CONFIG_FILE,
    JOB_FILE,
    LOGS,
    METRICS_FILE,
    PROVENANCE_FILE,
    ROLLBACKS_FILE,
    STARTS_FILE,
    STATUS_FILE,
    SUMMARY_FILE,
    committed,
    newest_step,
)
from pipeline.rundir.rollbacks import (
    LeftOutBatch,
    Rollback,
    append_rollback,
    left_out,
    read_rollbacks,
)
from pipeline.rundir.starts import Start, append_start, read_starts
from pipeline.rundir.status import (
    RunStatus,
    State,
    forget_status,
    read_status,
    restore_status,
    write_status,
)

__all__ = [
    "ATTEMPTS_FILE",
    "CHECKPOINTS",
    "CONFIG_FILE",
    "JOB_FILE",
    "LOGS",
    "METRICS_FILE",
    "PROVENANCE_FILE",
    "ROLLBACKS_FILE",
    "STARTS_FILE",
    "STATUS_FILE",
    "SUMMARY_FILE",
    "Attempt",
    "End",
    "Failure",
    "Heartbeat",
    "LeftOutBatch",
    "Phase",
    "RankMark",
    "Rollback",
    "RunInUseError",
    "RunStatus",
    "Start",
    "State",
    "StopClass",
    "append_attempt",
    "append_rollback",
    "append_start",
    "attempt_id",
    "committed",
    "exclusive",
    "first_failure",
    "forget_failures",
    "forget_heartbeats",
    "forget_status",
    "is_active",
    "left_out",
    "newest_step",
    "read_attempts",
    "read_heartbeat",
    "read_heartbeats",
    "read_marks",
    "read_rollbacks",
    "read_starts",
    "read_status",
    "refuse_active",
    "restore_status",
    "write_status",
]
