"""What is wrong with the data a run was pointed at: one line on stderr and exit status 2."""


class DataError(ValueError):
    """A shard directory that is absent, unsealed, changed or does not fit the run."""


class SampleError(ValueError):
    """One sample whose bytes or frames are not what the index promises."""
