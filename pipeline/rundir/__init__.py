"""The run directory: what lies in it, who owns it, and how it is read and written.

Imports the standard library and pydantic only; `pipeline` and `slurm` both go through it.
"""

from pipeline.rundir.attempts import attempt_id
from pipeline.rundir.lock import exclusive, is_active, refuse_active
from pipeline.rundir.paths import (
    ATTEMPTS_FILE,
    CHECKPOINTS,
    CONFIG_FILE,
    LOGS,
    METRICS_FILE,
    PROVENANCE_FILE,
    STATUS_FILE,
    SUMMARY_FILE,
)
from pipeline.rundir.status import read_status, write_status

__all__ = [
    "ATTEMPTS_FILE",
    "CHECKPOINTS",
    "CONFIG_FILE",
    "LOGS",
    "METRICS_FILE",
    "PROVENANCE_FILE",
    "STATUS_FILE",
    "SUMMARY_FILE",
    "attempt_id",
    "exclusive",
    "is_active",
    "read_status",
    "refuse_active",
    "write_status",
]
