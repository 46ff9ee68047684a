"""Errors of the data. A DataError becomes one line on stderr and exit status 2."""

from pipeline.rundir.exits import BAD_INPUT


class DataError(ValueError):
    """A shard directory is absent, unsealed or changed, or does not fit the run."""

    exit_status = BAD_INPUT


class SampleError(ValueError):
    """The bytes or frames of a sample are not what the index states."""
