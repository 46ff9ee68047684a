"""What is wrong with the data a run was pointed at: one line on stderr and exit status 2."""

from pipeline.rundir.exits import BAD_INPUT


class DataError(ValueError):
    """A shard directory that is absent, unsealed, changed or does not fit the run."""

    exit_status = BAD_INPUT


class SampleError(ValueError):
    """One sample whose bytes or frames are not what the index promises."""
