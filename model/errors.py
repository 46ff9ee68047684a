"""What `model` raises when its input, not its code, is at fault."""


class ModelError(ValueError):
    """Bad input to the model package: one line that says what, where, why and what to do."""

    exit_status = 2


class ModelConfigError(ModelError):
    """A preset, field or value that does not describe a model."""


class WeightsError(ModelError):
    """A weights file that cannot be read, trusted or fitted to the model."""
