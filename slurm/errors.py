"""Errors about the cluster and its jobs. A ClusterError ends in one line and exit status 2."""

from pipeline.rundir.exits import BAD_INPUT


class ClusterError(ValueError):
    """An unusable cluster profile, an unsafe setting, or a refused submission."""

    exit_status = BAD_INPUT


class JobDiedError(RuntimeError):
    """The end of a task that left no result."""
