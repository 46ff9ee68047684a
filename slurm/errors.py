"""A cluster that was asked for something it cannot do: one line and exit status 2."""


class ClusterError(ValueError):
    """An unusable cluster profile, an unsafe setting, or a refused submission."""


class JobDiedError(RuntimeError):
    """A task ended without leaving a result."""
