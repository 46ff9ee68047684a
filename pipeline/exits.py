"""Exit statuses, and the errors that mean the user asked for something that cannot work."""

from __future__ import annotations

from data_prep.errors import DataError as PrepError
from model.errors import ModelError
from pipeline.data.errors import DataError
from pipeline.errors import CheckpointError, ConfigError
from slurm.errors import ClusterError

DONE = 0
FAILED = 1
BAD_INPUT = 2
RESUMABLE = 75
"""Stopped early with a committed checkpoint: the same command goes on."""

USER_ERRORS = (ConfigError, CheckpointError, DataError, PrepError, ModelError, ClusterError)
