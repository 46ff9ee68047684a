"""What `model` raises when its input, not its code, is at fault."""

from reprlib import Repr


class ModelError(ValueError):
    """Bad input to the model package: one line that says what, where, why and what to do."""

    exit_status = 2


class ModelConfigError(ModelError):
    """A preset, field or value that does not describe a model."""


class WeightsError(ModelError):
    """A weights file that cannot be read, trusted or fitted to the model."""


def brief(value: object) -> str:
    """`value` as an error may quote it: printable, on one line, of 80 characters at most."""
    shape = Repr()
    shape.maxlevel, shape.maxstring, shape.maxother, shape.maxlong = 3, 80, 80, 80
    try:
        text = shape.repr(value)
    except ValueError:  # an integer of 5000 digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 80 else f"{text[:60]}...{text[-17:]}"
