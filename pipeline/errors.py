"""Errors of a run. Those that mean bad input become one line on stderr and exit status 2."""

from pipeline.rundir.exits import BAD_INPUT


class ConfigError(ValueError):
    """A recipe, override or run directory is invalid or does not fit the rest."""

    exit_status = BAD_INPUT


class CheckpointError(ValueError):
    """A checkpoint is absent, incomplete, corrupt or of another run."""

    exit_status = BAD_INPUT


class SaveError(RuntimeError):
    """A checkpoint could not be written; earlier checkpoints are intact."""


class UnstableError(RuntimeError):
    """The numbers of a training run have gone bad: see the subclasses."""

    def __init__(self, message: str, steps: tuple[int, ...] = ()) -> None:
        """`steps` are the optimizer steps in which that showed, in order."""
        super().__init__(message)
        self.steps = steps


class NonFiniteError(UnstableError):
    """Loss or gradients were NaN or infinite in more steps in a row than `guard` allows."""


class SpikeError(UnstableError):
    """The loss stood far above its recent values, as `stability` defines it."""


class NodeFaultError(RuntimeError):
    """A node is unfit for the run: a preflight check failed or a device is gone."""

    def __init__(self, message: str, ranks: frozenset[int] = frozenset()) -> None:
        """`ranks` are the ranks with the fault, if other ranks raise the same error too."""
        super().__init__(message)
        self.ranks = ranks


class HangError(RuntimeError):
    """A rank made no progress for `health.hang_timeout_s`."""
