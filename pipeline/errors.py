"""What a user did that cannot work: each becomes one line on stderr and exit status 2."""

from pipeline.rundir.exits import BAD_INPUT


class ConfigError(ValueError):
    """A recipe, override or run directory that contradicts itself or the code."""

    exit_status = BAD_INPUT


class CheckpointError(ValueError):
    """A checkpoint that is absent, incomplete, corrupt or of another run."""

    exit_status = BAD_INPUT


class SaveError(RuntimeError):
    """A checkpoint that could not be written; those before it are intact."""


class NonFiniteError(RuntimeError):
    """Loss or gradients became NaN or infinite and the tolerance of `guard` is spent."""


class NodeFaultError(RuntimeError):
    """This node cannot be trusted with the run: a preflight check failed or a device is gone."""

    def __init__(self, message: str, ranks: frozenset[int] = frozenset()) -> None:
        """`ranks`: where the fault is, when the same error is raised elsewhere as well."""
        super().__init__(message)
        self.ranks = ranks


class HangError(RuntimeError):
    """No training step was completed for `health.hang_timeout_s`."""
